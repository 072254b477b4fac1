"""Tensors to pixels and back, and sheets of pictures."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from app.pixels import BACKGROUND, from_uint8, grid, to_uint8
from training.data import to_images


def pictures(num: int, channels: int = 3, height: int = 5, width: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(num)
    return torch.randint(0, 256, (num, channels, height, width), generator=generator, dtype=torch.uint8)


def cell(sheet: NDArray[np.uint8], index: int, columns: int, padding: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    top, left = (index // columns) * (size[0] + padding), (index % columns) * (size[1] + padding)
    return sheet[top : top + size[0], left : left + size[1]]


# --- to_uint8 and from_uint8 ------------------------------------------------------------------------------------------------


def test_every_pixel_value_survives_the_way_there_and_back() -> None:
    values = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    assert np.array_equal(to_uint8(from_uint8(values)).numpy(), values)


def test_known_values_become_known_pixels() -> None:
    floats = torch.tensor([-1.0, 1.0, 0.0, -0.5, 0.999, -0.9961])
    assert to_uint8(floats).tolist() == [0, 255, 128, 64, 255, 0]


def test_values_outside_the_range_are_clamped() -> None:
    assert to_uint8(torch.tensor([-1.01, -7e30, 1.01, 7e30])).tolist() == [0, 0, 255, 255]


def test_the_given_tensor_is_left_as_it_was() -> None:
    floats = torch.tensor([[-1.0, 0.25]])
    to_uint8(floats)
    assert floats.tolist() == [[-1.0, 0.25]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_are_rounded_as_precisely(dtype: torch.dtype) -> None:
    floats = from_uint8(np.arange(256, dtype=np.uint8)).to(dtype)
    assert torch.equal(to_uint8(floats), to_uint8(floats.to(torch.float32)))


def test_the_layout_in_memory_changes_no_pixel() -> None:
    floats = from_uint8(pictures(3).numpy())
    assert torch.equal(to_uint8(floats.contiguous(memory_format=torch.channels_last)), to_uint8(floats))


def test_floats_span_the_range_and_keep_the_shape() -> None:
    floats = from_uint8(np.array([[[0, 255]]], dtype=np.uint8))
    assert floats.dtype == torch.float32
    assert floats.tolist() == [[[-1.0, 1.0]]]


def test_uploads_are_scaled_to_the_bit_as_training_scales_its_images() -> None:
    values = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    assert torch.equal(from_uint8(values), to_images(torch.from_numpy(values)))


def test_an_array_that_may_not_be_written_is_read() -> None:
    array = np.frombuffer(bytes([0, 255]), np.uint8)
    assert from_uint8(array).tolist() == [-1.0, 1.0]


# --- grid -------------------------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(
    num=st.integers(1, 20),
    channels=st.sampled_from([1, 3]),
    columns=st.none() | st.integers(1, 25),
    padding=st.integers(0, 3),
)
def test_every_image_stands_whole_in_its_cell(num: int, channels: int, columns: int | None, padding: int) -> None:
    images = pictures(num, channels)
    sheet = grid(images, columns, padding)
    used = min(columns or math.ceil(math.sqrt(num)), num)
    rows = math.ceil(num / used)
    assert sheet.shape == (rows * (5 + padding) - padding, used * (4 + padding) - padding, channels)
    rest = sheet.copy()
    for index in range(num):
        assert np.array_equal(cell(sheet, index, used, padding, (5, 4)), images[index].permute(1, 2, 0).numpy())
        cell(rest, index, used, padding, (5, 4))[:] = BACKGROUND
    assert (rest == BACKGROUND).all()


@pytest.mark.parametrize(("num", "columns", "rows"), [(1, 1, 1), (2, 2, 1), (4, 2, 2), (5, 3, 2), (64, 8, 8), (65, 9, 8), (256, 16, 16)])
def test_a_sheet_is_nearly_square_when_columns_are_left_out(num: int, columns: int, rows: int) -> None:
    assert grid(pictures(num), None, 0).shape == (5 * rows, 4 * columns, 3)


def test_one_image_is_its_own_grid() -> None:
    images = pictures(1)
    assert np.array_equal(grid(images), images[0].permute(1, 2, 0).numpy())


def test_a_grid_does_not_share_memory_with_the_images() -> None:
    images = pictures(1)
    before = images.clone()
    grid(images)[:] = 0
    assert torch.equal(images, before)


def test_a_sheet_lies_in_memory_row_by_row() -> None:
    assert grid(pictures(5)).flags.c_contiguous
