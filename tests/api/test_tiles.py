"""Tiles give what the whole picture gives, and cover it once."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_versions import enlarging, picture_spec
from torch import Tensor

from app import pixels, tiles
from app.tiles import CORE_PIXELS, Tile, plan, spans
from training.contract import TensorSpec

SIDES = st.integers(1, 24)


def tiled(network: torch.nn.Module, image: Tensor, spec: TensorSpec, core: int) -> Tensor:
    """What the engine does, in floats and with small cores."""
    _, height, width = image.shape
    result = torch.full((3, height * spec.scale, width * spec.scale), torch.nan)
    for rows in spans(height, core, spec.halo or 0):
        for columns in spans(width, core, spec.halo or 0):
            tile = Tile(rows, columns)
            tile.place(result, spec.scale).copy_(tile.core(network(tile.cut(image).unsqueeze(0))[0], spec.scale))
    return result


@settings(max_examples=20)
@given(height=SIDES, width=SIDES, core=st.integers(4, 12), scale=st.sampled_from([1, 2, 4]), seed=st.integers(0, 99))
def test_tiles_of_any_size_give_the_floats_and_pixels_of_the_whole(height: int, width: int, core: int, scale: int, seed: int) -> None:
    module = enlarging(scale=scale)
    [spec] = module.inputs
    image = torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    with torch.inference_mode():
        whole = module.network(image.unsqueeze(0))[0]
        in_tiles = tiled(module.network, image, spec, core)
    assert torch.allclose(in_tiles, whole, rtol=0, atol=1e-5)
    apart = (pixels.to_uint8(in_tiles).int() - pixels.to_uint8(whole).int()).abs()
    assert int(apart.max()) <= 1
    assert float(apart.float().mean()) < 1e-3, "a pixel may be rounded otherwise where it lies half-way"


def test_with_a_halo_that_is_too_small_the_test_above_would_fail() -> None:
    module = enlarging(halo=1)
    image = torch.rand(3, 30, 30) * 2 - 1
    with torch.inference_mode():
        apart = (tiled(module.network, image, module.inputs[0], 7) - module.network(image.unsqueeze(0))[0]).abs().max()
    assert apart > 1e-3


@settings(max_examples=60)
@given(height=st.integers(1, 90), width=st.integers(1, 90), multiple=st.sampled_from([1, 2, 8]), halo=st.integers(0, 70))
def test_cores_cover_a_picture_once_and_tiles_keep_to_multiples(height: int, width: int, multiple: int, halo: int) -> None:
    spec = picture_spec(1, size_multiple=multiple, halo=halo)
    height, width = height * multiple, width * multiple
    covered = np.zeros((height, width), int)
    for tile in plan(spec, height, width):
        covered[tile.rows.start : tile.rows.stop, tile.columns.start : tile.columns.stop] += 1
        for span, length in ((tile.rows, height), (tile.columns, width)):
            assert all(place % multiple == 0 for place in span)
            assert span.first == 0 or span.start - span.first >= halo
            assert span.last == length or span.last - span.stop >= halo
            assert span.stop - span.start <= CORE_PIXELS
    assert (covered == 1).all()


def test_what_must_be_seen_whole_is_one_tile() -> None:
    for spec in (picture_spec(1), picture_spec(1, 300, 300, halo=2)):
        [tile] = plan(spec, 300, 300)
        assert (tile.rows, tile.columns) == ((0, 300, 0, 300),) * 2
    assert len(plan(picture_spec(1, halo=2), 300, 129)) == 6
    assert len(plan(picture_spec(1, halo=2), 128, 128)) == 1


def test_lengths_are_rounded_up_to_multiples() -> None:
    assert [tiles.rounded(length, picture_spec(1, size_multiple=8)) for length in (0, 1, 8, 9)] == [0, 8, 8, 16]
