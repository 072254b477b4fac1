"""What is served, and what it makes and says."""

from collections.abc import Mapping, Sequence
from typing import Literal
from urllib.parse import quote

from PIL import Image
from pydantic import JsonValue

from app.client.pictures import Images, Picture, file_of, opened
from app.client.steps import Call, Steps, ask, read
from app.schemas.inference import Pictures, Scores
from app.schemas.models import Models, ModelVersions, VersionCard
from app.schemas.training import Architectures

Label = str | int | Mapping[str, float]
Latent = Sequence[JsonValue]  # nested lists of numbers
JSON = {"Accept": "application/json"}


def models() -> Steps[Models]:
    """Every model that is served, and every version that is broken."""
    return (yield from read(Models, Call("GET", "/models")))


def model(name: str) -> Steps[ModelVersions]:
    """One of them, with all its versions."""
    return (yield from read(ModelVersions, Call("GET", _path(name))))


def version(name: str, version: int | str) -> Steps[VersionCard]:
    """A version's manifest, and the command that trains it again; by number or alias."""
    return (yield from read(VersionCard, Call("GET", _path(name, version))))


def card(name: str, version: int | str | None = None) -> Steps[str]:
    """A version's model card in Markdown; that of the version that answers, where none is named."""
    number = (yield from model(name)).version if version is None else version
    response = yield from ask(Call("GET", f"{_path(name, number)}/card"))
    return response.text


def architectures() -> Steps[Architectures]:
    """What can be trained, and on what."""
    return (yield from read(Architectures, Call("GET", "/architectures")))


def generate(
    model: str,
    *,
    num_images: int | None = None,
    seed: int | None = None,
    labels: Sequence[Label] | Literal["all"] | None = None,
    truncation: float | None = None,
    best_of: int | None = None,
    latents: Sequence[Latent] | None = None,
    part: str | None = None,
    version: int | str | None = None,
) -> Steps[Images]:
    """Images: of consecutive seeds, or of latents.

    Args:
        num_images: 1 to 256; 16 when left out.
        labels: of a model of classes: one for all images or one for each, as name, index, or weights by name; "all" gives each class some.
        truncation: 0 to 1; scales latents towards their mean.
        best_of: candidates an image, of which the discriminator chooses.
        part: a served part of the model, in place of its generator.
    """
    body = {
        "model": model,
        "version": version,
        "num_images": num_images,
        "seed": seed,
        "labels": labels,
        "truncation": truncation,
        "best_of": best_of,
        "latents": latents,
        "part": part,
    }
    return Images.of((yield from read(Pictures, Call("POST", "/generate", json=_given(body), headers=JSON))))


def interpolate(
    model: str,
    anchors: Sequence[int | Latent],
    *,
    steps: int = 8,
    method: Literal["slerp", "lerp"] = "slerp",
    labels: Sequence[Label] | None = None,
    truncation: float | None = None,
    version: int | str | None = None,
) -> Steps[Images]:
    """The frames of a walk.

    Args:
        anchors: 2 to 16 seeds or latents to walk through.
        steps: frames between two of them.
        labels: of a model of classes: one for all anchors or one for each.
    """
    points = [{"seed": anchor} if isinstance(anchor, int) else {"latent": anchor} for anchor in anchors]
    body = {
        "model": model,
        "version": version,
        "anchors": points,
        "steps": steps,
        "method": method,
        "labels": labels,
        "truncation": truncation,
    }
    return Images.of((yield from read(Pictures, Call("POST", "/interpolate", json=_given(body), headers=JSON))))


def transform(model: str, picture: Picture, *, version: int | str | None = None) -> Steps[Image.Image]:
    """The picture that a model makes of a picture.

    Args:
        picture: an image of Pillow's, a file's path, or the bytes of one.
    """
    call = Call("POST", "/transform", form=_form(model, version), files=[("file", file_of(picture, 0))], headers={"Accept": "image/png"})
    return opened((yield from ask(call)).content)


def discriminate(
    model: str,
    pictures: Sequence[Picture],
    *,
    labels: Sequence[str | int] | None = None,
    sources: Sequence[Picture] | None = None,
    version: int | str | None = None,
) -> Steps[Scores]:
    """What the model's discriminator says of 1 to 64 pictures, in their order.

    Args:
        pictures: images of Pillow's, paths of files, or their bytes.
        labels: where it judges classes: one for all pictures or one for each.
        sources: where it judges pairs: what each picture was made of.
    """
    form = _form(model, version) | ({} if labels is None else {"labels": [str(label) for label in labels]})
    files = [("files", file_of(picture, index)) for index, picture in enumerate(pictures)]
    files += [("sources", file_of(picture, index)) for index, picture in enumerate(sources or ())]
    return (yield from read(Scores, Call("POST", "/discriminate", form=form, files=files)))


def _given(body: Mapping[str, object]) -> dict[str, object]:
    """What is None was not said."""
    return {field: value for field, value in body.items() if value is not None}


def _form(model: str, version: int | str | None) -> dict[str, str | list[str]]:
    form: dict[str, str | list[str]] = {"model": model}
    return form if version is None else form | {"version": str(version)}


def _path(name: str, version: int | str | None = None) -> str:
    return f"/models/{quote(name, safe='')}" + ("" if version is None else f"/{quote(str(version), safe='')}")
