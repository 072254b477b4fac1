"""`ganserve augment`: labelled images of a conditional model, for the classes of a data set."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import httpx
from cyclopts import Parameter

from ganserve.asking import Model, body_of
from ganserve.connection import Connection, check
from training.contract import DatasetCard, UserError


def augment(
    dataset: Annotated[str, Parameter(help="A data set with classes.")],
    /,
    *,
    model: Annotated[Model, Parameter(help="A model of the same classes, or `model/version` with a number or an alias.")],
    num_images: Annotated[int | None, Parameter(name=["--num-images", "-n"], help="In all, of each class as many.")] = None,
    images_per_class: Annotated[
        int | None, Parameter(help="Of each class. Without both, each gets what it lacks to be as large as the largest.")
    ] = None,
    seed: Annotated[int | None, Parameter(help="Of the first image; the next ones follow. Drawn, and told, when left out.")] = None,
    truncation: Annotated[float | None, Parameter(help="0 to 1: scales latents towards their mean.")] = None,
    best_of: Annotated[
        int | None, Parameter(help="Draw so many candidates an image, 2 to 64; the one that the discriminator rates highest is kept.")
    ] = None,
    include_real: Annotated[bool, Parameter(help="Put the images of the set before the generated ones.")] = False,
    save_as: Annotated[str | None, Parameter(help="Register them as a data set of this name, in place of a file.")] = None,
    output: Annotated[
        Path | None,
        Parameter(name=["--output", "-o"], help="ZIP file to write, a folder a class; `<dataset>-augmented.zip` when left out."),
    ] = None,
    connection: Connection = Connection(),
) -> None:
    """Make labelled images for a data set, as a ZIP or as a new set. Whether they help is a question: see docs/augmentation.md."""
    if save_as is not None and output is not None:
        raise UserError(f"--output {output} has no effect with --save-as, which makes a data set; leave one of them out")
    target = output or Path(f"{dataset}-augmented.zip")
    if save_as is None and target.suffix.lower() != ".zip":
        raise UserError(f"{target} ends in {target.suffix!r}; the ending .zip is allowed, or --save-as for a data set")
    body = body_of(
        model,
        num_images=num_images,
        images_per_class=images_per_class,
        seed=seed,
        truncation=truncation,
        best_of=best_of,
        include_real=include_real or None,
        save_as=save_as,
    )

    async def question(client: httpx.AsyncClient) -> httpx.Response:
        async with client.stream("POST", f"/datasets/{quote(dataset, safe='')}/augment", json=body) as response:
            if not response.is_success or save_as is not None:
                await response.aread()
                return check(response)
            await _keep(response.aiter_bytes(), target)
            return response

    response = connection.ask(question)
    if save_as is not None:
        card = DatasetCard.model_validate_json(response.content)
        print(f"registered {card.name}: {card.num_images:,} images of {len(card.class_names or ())} classes: {card.source}")
    else:
        headers = response.headers
        print(f"{target}: {headers['X-Model']} version {headers['X-Version']}, seeds from {headers['X-Seed']} on")


async def _keep(pieces: AsyncIterator[bytes], target: Path) -> None:
    """Whole or not at all; raises UserError where it cannot be written."""
    begun = target.with_name(f".{target.name}.part")
    try:
        try:
            with begun.open("wb") as file:
                async for piece in pieces:
                    file.write(piece)
            begun.replace(target)
        finally:
            begun.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error.strerror}") from error
