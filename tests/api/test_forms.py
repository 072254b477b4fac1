"""The forms of an answer, from images alone: what each one holds, and which layout a walk gets."""

import io
import json
import zipfile

import numpy as np
import pytest
import torch
from api_client import cells, picture
from PIL import Image

from app import forms
from app.errors import Invalid, NotAcceptable
from app.forms import GIF, JPEG, JSON, NPY, PNG, WEBP, ZIP, Layout, Made, choose_layout, laid_out, refuse_without_effect, still
from app.schemas.inference import InterpolateRequest

GREY = torch.arange(5 * 16 * 16, dtype=torch.int64).remainder(256).to(torch.uint8).reshape(5, 1, 16, 16)
COLOUR = GREY.repeat(1, 3, 1, 1) // torch.tensor([1, 2, 3], dtype=torch.uint8).reshape(1, 3, 1, 1)


def made(images: torch.Tensor = GREY, seeds: tuple[int, ...] | None = (7, 8, 9, 10, 11), **more: object) -> Made:
    return Made("tiny", 3, images, seeds, '{"model":"tiny"}', **more)  # type: ignore[arg-type]


def walk(**fields: object) -> InterpolateRequest:
    return InterpolateRequest.model_validate({"model": "tiny", "anchors": [{"seed": 1}, {"seed": 2}], "steps": 3} | fields)


def pixels(images: torch.Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    rows = images.permute(0, 2, 3, 1).numpy()
    return rows[..., 0] if rows.shape[-1] == 1 else rows


# --- stills -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("images", [GREY, COLOUR], ids=["grey", "colour"])
def test_every_still_holds_the_images(images: torch.Tensor) -> None:
    wanted = pixels(images)
    assert np.array_equal(cells(picture(still(PNG, made(images), 2)), 5, 2, 16), wanted)
    assert np.array_equal(np.load(io.BytesIO(still(NPY, made(images), None)), allow_pickle=False).squeeze(), wanted)
    archive = zipfile.ZipFile(io.BytesIO(still(ZIP, made(images), None)))
    assert np.array_equal(np.stack([picture(archive.read(name)) for name in archive.namelist()]), wanted)
    for form, name in ((JPEG, "JPEG"), (WEBP, "WEBP")):
        image = Image.open(io.BytesIO(still(form, made(images), 5)))
        assert (image.format, image.size) == (name, (88, 16))


def test_the_same_images_give_the_same_bytes() -> None:
    for form in forms.STILLS:
        assert still(form, made(COLOUR), None) == still(form, made(COLOUR.clone()), None)


def test_single_files_are_named_by_seed_or_else_by_number() -> None:
    def names(of: Made) -> list[str]:
        return zipfile.ZipFile(io.BytesIO(still(ZIP, of, None))).namelist()

    assert names(made()) == [f"tiny-3-seed-{seed}.png" for seed in (7, 8, 9, 10, 11)]
    assert names(made(seeds=None)) == [f"tiny-3-{index:03}.png" for index in range(5)]


def test_json_says_null_where_there_are_no_seeds_and_nothing_of_latents_unless_asked() -> None:
    assert json.loads(still(JSON, made(), None)).keys() == {"model", "version", "seeds", "images"}
    assert json.loads(still(JSON, made(seeds=None), None))["seeds"] is None
    latents = torch.tensor([[0.1, -3e-8]] * 5)
    told = json.loads(still(JSON, made(latents={"latent": latents}), None))["latents"]["latent"]
    assert torch.equal(torch.tensor(told, dtype=torch.float32), latents)


def test_text_and_headers_tell_of_the_first_seed_or_of_none() -> None:
    assert made().headers == {"X-Model": "tiny", "X-Version": "3", "X-Seed": "7"}
    assert made(seeds=None).headers == {"X-Model": "tiny", "X-Version": "3"}
    assert made().text() == {"Software": "ganserve", "model": "tiny", "version": "3", "seed": "7", "request": '{"model":"tiny"}'}
    assert made().text(4)["seed"] == "11"
    assert "seed" not in made(seeds=None).text(4)


# --- layouts ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accept", "fields", "layout"),
    [
        (None, {}, Layout(PNG, columns=5)),
        ("*/*", {"layout": "strip"}, Layout(PNG, columns=5)),
        ("image/jpeg", {}, Layout(JPEG, columns=5)),
        (None, {"columns": 2}, Layout(PNG, columns=2)),
        (None, {"layout": "grid"}, Layout(PNG, columns=None)),
        (WEBP, {"layout": "grid", "columns": 3}, Layout(WEBP, columns=3)),
        (GIF, {}, Layout(GIF, frames_per_second=12)),
        (GIF, {"frames_per_second": 3}, Layout(GIF, frames_per_second=3)),
        (None, {"layout": "animation"}, Layout(GIF, frames_per_second=12)),
        (WEBP, {"layout": "animation", "frames_per_second": 2.5}, Layout(WEBP, frames_per_second=2.5)),
        ("image/*", {"layout": "animation"}, Layout(GIF, frames_per_second=12)),
        ("image/webp;q=0.9, image/gif", {}, Layout(GIF, frames_per_second=12)),
        ("image/gif;q=0.9, image/webp", {}, Layout(WEBP, columns=5)),
        ("image/gif, image/png;q=0.1", {"columns": 2}, Layout(PNG, columns=2)),
        (ZIP, {}, Layout(ZIP)),
        (JSON, {"return_latents": True}, Layout(JSON)),
        (NPY, {}, Layout(NPY)),
    ],
)
def test_the_layout_follows_the_wish_or_else_the_form(accept: str | None, fields: dict[str, object], layout: Layout) -> None:
    assert choose_layout(walk(**fields), accept) == layout


@pytest.mark.parametrize(
    ("accept", "fields", "name"),
    [
        (None, {"layout": "strip", "columns": 2}, "columns"),
        (None, {"layout": "animation", "columns": 2}, "columns"),
        (ZIP, {"columns": 2}, "columns"),
        (None, {"frames_per_second": 3}, "frames_per_second"),
        (None, {"layout": "grid", "frames_per_second": 3}, "frames_per_second"),
        (JSON, {"frames_per_second": 3}, "frames_per_second"),
        (None, {"return_latents": True}, "return_latents"),
        (GIF, {"return_latents": True}, "return_latents"),
        (ZIP, {"layout": "strip"}, "layout"),
        (NPY, {"layout": "grid"}, "layout"),
    ],
)
def test_a_field_that_the_layout_has_no_room_for_is_refused(accept: str | None, fields: dict[str, object], name: str) -> None:
    with pytest.raises(Invalid, match=f"^{name} has no effect on ") as refused:
        choose_layout(walk(**fields), accept)
    assert [error.pointer for error in refused.value.errors] == [f"/{name}"]


@pytest.mark.parametrize(("accept", "layout"), [(PNG, "animation"), (ZIP, "animation"), (GIF, "strip"), (GIF, "grid"), ("text/html", None)])
def test_a_form_that_the_layout_cannot_have_is_refused(accept: str, layout: str | None) -> None:
    with pytest.raises(NotAcceptable, match="this route can make"):
        choose_layout(walk() if layout is None else walk(layout=layout), accept)


def test_frames_are_laid_out_as_chosen() -> None:
    assert picture(laid_out(Layout(PNG, columns=5), made(seeds=None))).shape == (16, 88)
    assert picture(laid_out(Layout(PNG, columns=2), made(seeds=None))).shape == (52, 34)
    for form in (GIF, WEBP):
        image = Image.open(io.BytesIO(laid_out(Layout(form, frames_per_second=5.0), made(COLOUR, seeds=None))))
        assert (image.n_frames, image.size) == (5, (16, 16))


def test_what_was_not_given_is_never_refused() -> None:
    for form in forms.STILLS:
        refuse_without_effect(form, {"columns": None, "return_latents": None})
    refuse_without_effect(PNG, {"columns": 1})
    refuse_without_effect(JSON, {"return_latents": True})
