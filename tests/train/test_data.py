from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from training import data, datasets
from training.contract import TrainConfig
from training.data import Batches, evenly, split, to_images
from training.datasets import About, Batch, Dataset

CPU = torch.device("cpu")
RANDOM_IMAGES = np.random.default_rng(3).integers(0, 256, (300, 1, 4, 4), dtype=np.uint8)


def a_set(folder: Path, images: NDArray[np.uint8], name: str = "tiny") -> Dataset:
    channels, height, width = images.shape[1:]
    datasets.write(name, folder, About((channels, height, width), "a test", "CC0"), [Batch(images)])
    return datasets.load(name, folder)


def numbered_set(folder: Path, count: int) -> Dataset:
    """Image i is all i, so that a batch tells which rows it is made of."""
    return a_set(folder, np.broadcast_to(np.arange(count, dtype=np.uint8).reshape(-1, 1, 1, 1), (count, 1, 2, 2)).copy())


def batches_of(dataset: Dataset, rows: torch.Tensor, batch_size: int, seed: int = 0) -> Batches:
    return Batches(dataset, rows, batch_size, torch.Generator().manual_seed(seed), CPU)


def rows_in(batch: dict[str, torch.Tensor]) -> list[int]:
    return ((batch["image"][:, 0, 0, 0] + 1) * 127.5).round().int().tolist()


# --- pixels -------------------------------------------------------------------------------------------------------------------


def test_pixels_become_exactly_the_range_from_minus_one_to_one() -> None:
    images = to_images(torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16))
    assert images.dtype == torch.float32
    assert images.min().item() == images[0, 0, 0, 0].item() == -1.0
    assert images.max().item() == images[0, 0, -1, -1].item() == 1.0
    assert (images.flatten().diff() > 0).all()


def test_pixels_are_not_changed_where_they_lie() -> None:
    pixels = torch.arange(4, dtype=torch.uint8).reshape(1, 1, 2, 2)
    to_images(pixels)
    assert pixels.flatten().tolist() == [0, 1, 2, 3]


# --- split --------------------------------------------------------------------------------------------------------------------


def contents(dataset: Dataset, rows: torch.Tensor) -> set[bytes]:
    return {dataset.images[row].tobytes() for row in rows.tolist()}


def test_every_image_is_either_trained_on_or_held_out(tmp_path: Path) -> None:
    dataset = a_set(tmp_path, RANDOM_IMAGES)
    parts = split(dataset, 64)
    assert len(parts.held_out) == 64
    assert sorted([*parts.train.tolist(), *parts.held_out.tolist()]) == list(range(300))
    assert parts.train.tolist() == sorted(parts.train.tolist())


def test_the_same_images_are_held_out_in_whatever_order_they_were_added(tmp_path: Path) -> None:
    shuffled = RANDOM_IMAGES[np.random.default_rng(4).permutation(len(RANDOM_IMAGES))]
    first, second = a_set(tmp_path, RANDOM_IMAGES, "first"), a_set(tmp_path, shuffled, "second")
    assert contents(first, split(first, 70).held_out) == contents(second, split(second, 70).held_out)


def test_two_runs_hold_out_the_same_images(tmp_path: Path) -> None:
    dataset = a_set(tmp_path, RANDOM_IMAGES)
    assert torch.equal(split(dataset, 64).held_out, split(datasets.load("tiny", tmp_path), 64).held_out)


def test_more_images_leave_held_out_ones_held_out(tmp_path: Path) -> None:
    few, more = a_set(tmp_path, RANDOM_IMAGES[:200], "few"), a_set(tmp_path, RANDOM_IMAGES, "more")
    held_out_of_few, held_out_of_more = (contents(each, split(each, num).held_out) for each, num in ((few, 64), (more, 96)))
    assert len(held_out_of_few & held_out_of_more) > 0.6 * 64


def test_a_copy_of_a_held_out_image_is_never_trained_on(tmp_path: Path) -> None:
    dataset = a_set(tmp_path, np.concatenate([RANDOM_IMAGES, RANDOM_IMAGES[::-1]]))
    parts = split(dataset, 65)
    assert len(parts.held_out) == 66, "both copies of each of 33 images"
    assert not contents(dataset, parts.train) & contents(dataset, parts.held_out)


def test_a_set_of_copies_leaves_nothing_to_train_on_and_is_refused(tmp_path: Path) -> None:
    dataset = a_set(tmp_path, np.zeros((200, 1, 4, 4), np.uint8))
    with pytest.raises(datasets.DatasetError, match="'tiny' has 200 images and all of them are held out, because they are copies"):
        split(dataset, 64)


@pytest.mark.parametrize(
    ("images", "share", "held_out"), [(100, 0.1, 64), (640, 0.1, 64), (5000, 0.1, 500), (5000, 0.5, 2500), (10**6, 0.1, 10_000)]
)
def test_between_64_and_10_000_images_are_held_out(images: int, share: float, held_out: int) -> None:
    assert TrainConfig(hold_out=share).num_held_out(images) == held_out


@pytest.mark.parametrize(
    ("count", "picked"), [(1, [5]), (2, [5, 15]), (3, [5, 10, 15]), (6, [5, 7, 9, 11, 13, 15]), (11, range(5, 16)), (99, range(5, 16))]
)
def test_rows_are_thinned_evenly_from_the_first_to_the_last(count: int, picked: list[int]) -> None:
    assert evenly(torch.arange(5, 16), count).tolist() == list(picked)


# --- batches ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [5, 4, 2, 25], ids=["divides", "crosses", "small", "longer than an epoch"])
def test_each_epoch_shows_every_image_once_and_in_another_order(tmp_path: Path, batch_size: int) -> None:
    rows = torch.arange(3, 13)
    batches = batches_of(numbered_set(tmp_path, 20), rows, batch_size)
    dealt = [batches.next() for _ in range(100 // batch_size)]
    assert all(batch["image"].shape == (batch_size, 1, 2, 2) for batch in dealt)
    shown = [row for batch in dealt for row in rows_in(batch)]
    epochs = [shown[start : start + 10] for start in range(0, 100, 10)]
    assert all(sorted(epoch) == rows.tolist() for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_batches_are_the_images_scaled(tmp_path: Path) -> None:
    dataset = a_set(tmp_path, RANDOM_IMAGES)
    batch = batches_of(dataset, torch.arange(300), 300).next()["image"]
    assert batch.dtype == torch.float32
    wanted = to_images(torch.from_numpy(RANDOM_IMAGES))
    assert sorted(map(tuple, batch.flatten(1).tolist())) == sorted(map(tuple, wanted.flatten(1).tolist()))


def test_the_order_comes_from_the_seed_alone(tmp_path: Path) -> None:
    dataset = numbered_set(tmp_path, 50)
    shown = {}
    for seed, attempt in ((1, "first"), (1, "again"), (2, "other")):
        torch.manual_seed(len(shown))
        shown[attempt] = rows_in(batches_of(dataset, torch.arange(50), 50, seed).next())
    assert shown["first"] == shown["again"] != shown["other"]


@pytest.mark.parametrize("batches_before", [0, 1, 2, 3, 7])
def test_batches_go_on_where_their_state_was_taken(tmp_path: Path, batches_before: int) -> None:
    dataset, rows = numbered_set(tmp_path, 20), torch.arange(10)
    batches = batches_of(dataset, rows, 4, seed=5)
    for _ in range(batches_before):
        batches.next()
    state = batches.state_dict()
    wanted = [rows_in(batches.next()) for _ in range(8)]

    again = batches_of(dataset, rows, 4, seed=99)
    again.next()
    again.load_state_dict(state)
    assert [rows_in(again.next()) for _ in range(8)] == wanted


def test_a_set_that_does_not_fit_is_read_from_its_file_in_the_same_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, rows = numbered_set(tmp_path, 20), torch.arange(5, 17)
    held = batches_of(dataset, rows, 4)
    resident = [held.next()["image"] for _ in range(7)]
    monkeypatch.setattr(data, "RESIDENT_SHARE", 0.0)
    mapped = batches_of(dataset, rows, 4)
    assert all(torch.equal(mapped.next()["image"], batch) for batch in resident)
