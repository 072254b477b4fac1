"""`ganserve generate`, `interpolate`, `transform` and `discriminate`: the service's questions, from the console."""

import re
from pathlib import Path
from typing import Annotated, Literal

import httpx
from cyclopts import Parameter

from ganserve.connection import Connection, check, form_of, write
from training.contract import UserError

STILLS = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
    ".zip": "application/zip",
    ".npy": "application/x-npy",
    ".json": "application/json",
}
FRAMES = STILLS | {".gif": "image/gif"}
PICTURES = {ending: form for ending, form in STILLS.items() if form.startswith("image/")}

Model = Annotated[str, Parameter(help="A model, or `model/version` with a number or an alias.")]
Output = Annotated[Path, Parameter(name=["--output", "-o"], help="File to write; its ending chooses the form.")]


def generate(
    model: Model,
    /,
    *,
    num_images: Annotated[
        int | None,
        Parameter(name=["--num-images", "-n"], help="How many, 1 to 256; 16 when left out, or 8 of each class."),
    ] = None,
    seed: Annotated[int | None, Parameter(help="Of the first image; the next ones follow. Drawn, and told, when left out.")] = None,
    truncation: Annotated[float | None, Parameter(help="0 to 1: scales latents towards their mean.")] = None,
    columns: Annotated[int | None, Parameter(help="Images in a row; near square when left out.")] = None,
    labels: Annotated[
        tuple[str, ...],
        Parameter(consume_multiple=True, help="For a model of classes: one for all images, one for each, or `all`: a row of each class."),
    ] = (),
    best_of: Annotated[
        int | None, Parameter(help="Draw so many candidates an image, 2 to 64; the one that the discriminator rates highest is kept.")
    ] = None,
    part: Annotated[str | None, Parameter(help="A part of the model that runs in place of its generator.")] = None,
    output: Output = Path("generated.png"),
    connection: Connection = Connection(),
) -> None:
    """Make images: a grid as .png, .jpg or .webp, or single ones as .zip, .npy or .json."""
    form = form_of(output, STILLS)
    body = body_of(
        model,
        num_images=num_images,
        seed=seed,
        truncation=truncation,
        columns=columns,
        labels="all" if labels == ("all",) else list(labels) or None,
        best_of=best_of,
        part=part,
    )

    async def question(client: httpx.AsyncClient) -> httpx.Response:
        return check(await client.post("/generate", json=body, headers={"Accept": form}))

    _save(connection.ask(question), output)


def interpolate(
    model: Model,
    seeds: Annotated[tuple[int, ...], Parameter(help="Seeds to walk through, 2 to 16.")],
    /,
    *,
    steps: Annotated[int, Parameter(help="Frames between two neighbours.")] = 8,
    method: Annotated[Literal["slerp", "lerp"], Parameter(help="slerp keeps the latent's length; lerp is the straight line.")] = "slerp",
    truncation: Annotated[float | None, Parameter(help="0 to 1: scales latents towards their mean.")] = None,
    labels: Annotated[
        tuple[str, ...], Parameter(consume_multiple=True, help="For a model of classes: one for all seeds, or one for each.")
    ] = (),
    columns: Annotated[int | None, Parameter(help="Frames in a row: a grid in place of a strip.")] = None,
    frames_per_second: Annotated[float | None, Parameter(help="Of an animation; 12 when left out.")] = None,
    animate: Annotated[bool, Parameter(help="Make a .webp move; a .gif always does.")] = False,
    output: Output = Path("interpolation.png"),
    connection: Connection = Connection(),
) -> None:
    """Walk from seed to seed: a strip or a grid as .png, .jpg or .webp, or an animation as .gif or .webp."""
    form = form_of(output, FRAMES)
    layout = "animation" if animate or form == "image/gif" else "grid" if columns is not None else None
    body = body_of(
        model,
        anchors=[{"seed": seed} for seed in seeds],
        steps=steps,
        method=method,
        truncation=truncation,
        labels=list(labels) or None,
        columns=columns,
        frames_per_second=frames_per_second,
        layout=layout,
    )

    async def question(client: httpx.AsyncClient) -> httpx.Response:
        return check(await client.post("/interpolate", json=body, headers={"Accept": form}))

    _save(connection.ask(question), output)


def transform(
    model: Model,
    file: Annotated[Path, Parameter(help="A picture, of a size that the model takes.")],
    /,
    *,
    output: Output = Path("transformed.png"),
    connection: Connection = Connection(),
) -> None:
    """Make a picture of a picture, as .png, .jpg or .webp, with a model that does so."""
    form = form_of(output, PICTURES)
    fields = {key: str(value) for key, value in body_of(model).items()}
    parts = [("file", (file.name, _read(file)))]

    async def question(client: httpx.AsyncClient) -> httpx.Response:
        return check(await client.post("/transform", data=fields, files=parts, headers={"Accept": form}))

    _save(connection.ask(question), output)


def discriminate(
    model: Model,
    files: Annotated[tuple[Path, ...], Parameter(help="Pictures, 1 to 64.")],
    /,
    *,
    labels: Annotated[
        tuple[str, ...], Parameter(consume_multiple=True, help="Where classes are judged too: one for all files, or one for each.")
    ] = (),
    sources: Annotated[
        tuple[Path, ...], Parameter(consume_multiple=True, help="Where pairs are judged: the picture that each file was made of, in order.")
    ] = (),
    connection: Connection = Connection(),
) -> None:
    """Score pictures with a model's discriminator, and say where the scores lie among real and generated ones."""
    form: dict[str, str | list[str]] = {key: str(value) for key, value in body_of(model).items()}
    form |= {"labels": list(labels)} if labels else {}
    parts = [("files", (path.name, _read(path))) for path in files]
    parts += [("sources", (path.name, _read(path))) for path in sources]

    async def question(client: httpx.AsyncClient) -> httpx.Response:
        return check(await client.post("/discriminate", data=form, files=parts))

    for score in connection.ask(question).json()["scores"]:
        parts_of_line = [f"{score['file']}: score {score['score']:.3f}"]
        if score["probability"] is not None:
            parts_of_line.append(f"probability of being real {score['probability']:.3f}")
        if score["percentile_real"] is not None:
            parts_of_line.append(
                f"above {score['percentile_real']:.0f} % of real images and {score['percentile_generated']:.0f} % of generated ones"
            )
        print(", ".join(parts_of_line))


def body_of(model: str, **fields: object) -> dict[str, object]:
    """What to send: whom to ask, by name and version, and every field that was given."""
    name, _, version = model.partition("/")
    asked = {"model": name, "version": int(version) if re.fullmatch(r"[0-9]+", version) else version or None}
    return {key: value for key, value in (asked | fields).items() if value is not None}


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def _save(response: httpx.Response, output: Path) -> None:
    write(output, response.content)
    headers = response.headers
    seed = f", seed {headers['X-Seed']}" if "X-Seed" in headers else ""
    print(f"{output}: {headers['X-Model']} version {headers['X-Version']}{seed}")
