import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from training import data, datasets
from training.contract import TrainConfig
from training.data import Batches, evenly, rows_of, split, to_images
from training.datasets import About, Batch, Dataset

CPU = torch.device("cpu")
RANDOM_IMAGES = np.random.default_rng(3).integers(0, 256, (300, 1, 4, 4), dtype=np.uint8)


def a_set(folder: Path, images: NDArray[np.uint8], name: str = "tiny", groups: NDArray[np.int64] | None = None) -> Dataset:
    channels, height, width = images.shape[1:]
    about = About((channels, height, width), "a test", "CC0", grouped=groups is not None)
    datasets.write(name, folder, about, [Batch(images, groups=groups)])
    return datasets.load(name, folder)


def full_set(folder: Path, count: int) -> Dataset:
    """Image i is all i, its label i modulo 3, its source all 255 - i, of another shape."""
    numbers = np.arange(count, dtype=np.uint8)
    images = np.broadcast_to(numbers.reshape(-1, 1, 1, 1), (count, 1, 2, 2)).copy()
    sources = np.broadcast_to(255 - numbers.reshape(-1, 1, 1, 1), (count, 3, 1, 2)).copy()
    about = About((1, 2, 2), "a test", "CC0", ("a", "b", "c"), source_shape=(3, 1, 2))
    datasets.write("full", folder, about, [Batch(images, np.arange(count) % 3, sources=sources)])
    return datasets.load("full", folder)


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


def test_sets_without_groups_are_split_as_they_always_were(tmp_path: Path) -> None:
    """The rows are those of version 0.1.0: models that it trained are never tested on what they have seen."""
    assert split(a_set(tmp_path, RANDOM_IMAGES), 10).held_out.tolist() == [25, 94, 114, 159, 163, 166, 206, 207, 226, 265]
    copies = a_set(tmp_path, np.concatenate([RANDOM_IMAGES[:20], RANDOM_IMAGES[:20]]), "copies")
    assert split(copies, 5).held_out.tolist() == [1, 3, 11, 21, 23, 31]


def test_a_set_of_groups_of_one_is_split_like_one_without_groups(tmp_path: Path) -> None:
    images = np.concatenate([RANDOM_IMAGES[:100], RANDOM_IMAGES[:50]])
    plain, grouped = a_set(tmp_path, images, "plain"), a_set(tmp_path, images, "grouped", np.arange(150)[::-1])
    for count in (1, 7, 64):
        assert torch.equal(split(plain, count).held_out, split(grouped, count).held_out)


GROUPS = np.random.default_rng(5).integers(0, 30, 300)


def test_groups_are_held_out_whole_in_the_order_of_their_first_hash(tmp_path: Path) -> None:
    dataset = a_set(tmp_path, RANDOM_IMAGES, groups=GROUPS)
    hashes = [hashlib.sha256(image.tobytes()).digest() for image in RANDOM_IMAGES]
    order = dict.fromkeys(int(GROUPS[row]) for row in sorted(range(300), key=hashes.__getitem__))
    for count in (1, 8, 64, 100, 150):
        wanted: list[int] = []
        for group in order:
            if len(wanted) < count:
                wanted += np.flatnonzero(group == GROUPS).tolist()
        assert split(dataset, count).held_out.tolist() == sorted(wanted)


def test_the_same_groups_are_held_out_in_whatever_order_and_under_whatever_numbers(tmp_path: Path) -> None:
    shuffled = np.random.default_rng(6).permutation(300)
    first = a_set(tmp_path, RANDOM_IMAGES, "first", GROUPS)
    second = a_set(tmp_path, RANDOM_IMAGES[shuffled], "second", 7 - 3 * GROUPS[shuffled])
    assert contents(first, split(first, 64).held_out) == contents(second, split(second, 64).held_out)


def test_groups_that_share_an_image_are_held_out_together_along_the_whole_chain(tmp_path: Path) -> None:
    """Groups 0 to 9 of ten images; group i + 1 begins with the last image of group i, up to group 4."""
    images, groups = RANDOM_IMAGES[:100].copy(), np.repeat(np.arange(10), 10)
    for group in range(4):
        images[10 * (group + 1)] = images[10 * group + 9]
    dataset = a_set(tmp_path, images, groups=groups)
    chain, sizes = set(range(50)), set()
    for count in range(1, 91):
        parts = split(dataset, count)
        sizes.add(len(parts.held_out))
        assert chain <= set(parts.held_out.tolist()) or chain <= set(parts.train.tolist())
        assert not contents(dataset, parts.train) & contents(dataset, parts.held_out)
    assert sizes == {10, 60, 70, 80, 90}, "a group, then the chain, then other groups"


@pytest.mark.parametrize("num_groups", [1, 2])
def test_groups_that_leave_nothing_to_train_on_are_refused(tmp_path: Path, num_groups: int) -> None:
    dataset = a_set(tmp_path, RANDOM_IMAGES[:100], groups=np.arange(100) % num_groups)
    sentence = "'tiny' has 100 images and all of them are held out, because groups are held out whole, and those that share an image"
    with pytest.raises(datasets.DatasetError, match=sentence):
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


def test_labels_and_sources_stay_with_their_images(tmp_path: Path) -> None:
    dataset, rows = full_set(tmp_path, 60), torch.arange(10, 50)
    batches = batches_of(dataset, rows, 7)
    for _ in range(20):
        batch = batches.next()
        assert {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in batch.items()} == {
            "image": ((7, 1, 2, 2), torch.float32),
            "label": ((7, 3), torch.float32),
            "source": ((7, 3, 1, 2), torch.float32),
        }
        assert torch.allclose(batch["source"][:, 0, 0, 0], -batch["image"][:, 0, 0, 0], rtol=0, atol=1e-6)
        assert batch["label"].tolist() == [[float(row % 3 == index) for index in range(3)] for row in rows_in(batch)]


def test_a_batch_has_only_what_the_set_has(tmp_path: Path) -> None:
    assert set(batches_of(numbered_set(tmp_path, 20), torch.arange(10), 4).next()) == {"image"}


def test_chosen_rows_are_the_same_batch_in_their_order(tmp_path: Path) -> None:
    dataset = full_set(tmp_path, 60)
    batches = batches_of(dataset, torch.arange(60), 9)
    for _ in range(8):
        batch = batches.next()
        again = rows_of(dataset, torch.tensor(rows_in(batch)))
        assert all(torch.equal(again[name], tensor) for name, tensor in batch.items())
    assert rows_in(rows_of(dataset, torch.tensor([5, 3, 3]))) == [5, 3, 3]


def test_all_that_is_resident_counts_where_it_is_asked_what_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """60 images of 4 bytes, 60 labels of 8 and 60 sources of 6: 1,080 bytes."""
    dataset = full_set(tmp_path, 60)
    for memory, fits in ((1081, True), (1080, False)):
        monkeypatch.setattr(data, "RESIDENT_SHARE", memory / data._memory_bytes(CPU))
        batches = batches_of(dataset, torch.arange(60), 4)
        assert (batches._resident is not None) is fits


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
    dataset, rows = full_set(tmp_path, 20), torch.arange(5, 17)
    held = batches_of(dataset, rows, 4)
    resident = [held.next() for _ in range(7)]
    monkeypatch.setattr(data, "RESIDENT_SHARE", 0.0)
    mapped = batches_of(dataset, rows, 4)
    for batch in resident:
        again = mapped.next()
        assert set(again) == {"image", "label", "source"}
        assert all(torch.equal(again[name], tensor) for name, tensor in batch.items())
