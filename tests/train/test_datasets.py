import hashlib
import json
import shutil
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from training import datasets
from training.contract import DatasetCard
from training.datasets import (
    About,
    Batch,
    DamagedDatasetError,
    DatasetError,
    DatasetNameError,
    EmptyDatasetError,
    UnknownDatasetError,
)
from training.files.directories import RESERVED_BYTES

PLAIN = About((1, 4, 3), "a test", "CC0")
CLASSED = About((1, 4, 3), "a test", "CC0", ("cat", "dog"))
IMAGES = np.arange(7 * 12, dtype=np.uint8).reshape(7, 1, 4, 3)
LABELS = np.array([0, 1, 1, 0, 1, 0, 0], np.int64)
FULL = About((1, 4, 3), "a test", "CC0", ("cat", "dog"), source_shape=(3, 2, 2), grouped=True)
SOURCES = np.arange(7 * 12, dtype=np.uint8).reshape(7, 3, 2, 2)[::-1].copy()
GROUPS = np.array([4, 4, 9, 9, 9, -1, 4], np.int64)
FULL_BATCH = Batch(IMAGES, LABELS, sources=SOURCES, groups=GROUPS)


def classed(*cuts: int) -> Iterator[Batch]:
    for images, labels in zip(np.split(IMAGES, cuts), np.split(LABELS, cuts), strict=True):
        yield Batch(images, labels)


def write_plain(name: str, folder: Path) -> DatasetCard:
    return datasets.write(name, folder, PLAIN, [Batch(IMAGES)])


def test_what_is_written_in_batches_is_read_back_whole(tmp_path: Path) -> None:
    card = datasets.write("pets", tmp_path, CLASSED, classed(2, 3))
    loaded = datasets.load("pets", tmp_path)
    assert loaded.card == card == datasets.card("pets", tmp_path)
    assert (card.num_images, card.shape, card.class_names) == (7, (1, 4, 3), ("cat", "dog"))
    assert np.array_equal(loaded.images, IMAGES)
    assert loaded.labels is not None
    assert loaded.labels.dtype == np.int64
    assert np.array_equal(loaded.labels, LABELS)


def test_sources_and_groups_are_read_back_whole(tmp_path: Path) -> None:
    batches = [Batch(IMAGES[part], LABELS[part], (), SOURCES[part], GROUPS[part]) for part in (slice(3), slice(3, 4), slice(4, 7))]
    card = datasets.write("full", tmp_path, FULL, batches)
    loaded = datasets.load("full", tmp_path)
    assert (card.source_shape, card.num_groups) == ((3, 2, 2), 3)
    assert loaded.card == card == datasets.card("full", tmp_path)
    for array, wanted in ((loaded.images, IMAGES), (loaded.labels, LABELS), (loaded.sources, SOURCES), (loaded.groups, GROUPS)):
        assert array is not None
        assert array.dtype == wanted.dtype
        assert np.array_equal(array, wanted)
    assert isinstance(loaded.sources, np.memmap)
    assert card.content_sha256 == datasets.write("again", tmp_path, FULL, [FULL_BATCH]).content_sha256


def test_a_set_without_classes_has_no_labels(tmp_path: Path) -> None:
    write_plain("plain", tmp_path)
    assert datasets.load("plain", tmp_path).labels is None
    assert sorted(path.name for path in (tmp_path / "plain").iterdir()) == ["card.json", "images.npy"]


def test_images_stay_on_disk_and_cannot_be_changed(tmp_path: Path) -> None:
    write_plain("plain", tmp_path)
    images = datasets.load("plain", tmp_path).images
    assert isinstance(images, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        images[0, 0, 0, 0] = 1


def test_equal_content_has_the_equal_hash_under_any_name_and_batching(tmp_path: Path) -> None:
    first = datasets.write("first", tmp_path, CLASSED, classed())
    second = datasets.write("second", tmp_path, CLASSED, classed(1, 5))
    assert first.content_sha256 == second.content_sha256


def test_other_pixels_labels_or_shape_have_another_hash(tmp_path: Path) -> None:
    flat = About((1, 3, 4), "a test", "CC0")
    cards = [
        write_plain("plain", tmp_path),
        datasets.write("classed", tmp_path, CLASSED, classed()),
        datasets.write("swapped", tmp_path, CLASSED, [Batch(IMAGES, 1 - LABELS)]),
        datasets.write("brighter", tmp_path, PLAIN, [Batch(IMAGES + 1)]),
        datasets.write("flat", tmp_path, flat, [Batch(IMAGES.reshape(7, 1, 3, 4))]),
        datasets.write("paired", tmp_path, replace(PLAIN, source_shape=(3, 2, 2)), [Batch(IMAGES, sources=SOURCES)]),
        datasets.write("wide", tmp_path, replace(PLAIN, source_shape=(3, 1, 4)), [Batch(IMAGES, sources=SOURCES.reshape(7, 3, 1, 4))]),
        datasets.write("other", tmp_path, replace(PLAIN, source_shape=(3, 2, 2)), [Batch(IMAGES, sources=SOURCES + 1)]),
        datasets.write("grouped", tmp_path, replace(PLAIN, grouped=True), [Batch(IMAGES, groups=GROUPS)]),
        datasets.write("regrouped", tmp_path, replace(PLAIN, grouped=True), [Batch(IMAGES, groups=GROUPS[::-1])]),
        datasets.write("full", tmp_path, FULL, [FULL_BATCH]),
    ]
    assert len({card.content_sha256 for card in cards}) == len(cards)


def test_only_the_batch_at_hand_is_in_memory(tmp_path: Path) -> None:
    seen: list[weakref.ref[np.ndarray]] = []

    def batches() -> Iterator[Batch]:
        for _ in range(5):
            images = IMAGES.copy()
            seen.append(weakref.ref(images))
            yield Batch(images)
            del images
            assert sum(ref() is not None for ref in seen) <= 1

    assert datasets.write("stream", tmp_path, PLAIN, batches()).num_images == 35


def test_progress_counts_images_and_left_out_files(tmp_path: Path) -> None:
    told: list[int] = []
    batches = [Batch(IMAGES[:3], skipped=("a.txt: no picture",)), Batch(IMAGES[3:])]
    card = datasets.write("plain", tmp_path, PLAIN, batches, told.append)
    assert told == [4, 8]
    assert card.skipped == ("a.txt: no picture",)


def test_nothing_left_is_an_error_that_says_why(tmp_path: Path) -> None:
    batch = Batch(IMAGES[:0], skipped=("a.txt: this is no picture",))
    with pytest.raises(EmptyDatasetError, match=r"all 1 files were left out, the first because a\.txt: this is no picture"):
        datasets.write("none", tmp_path, PLAIN, [batch])
    with pytest.raises(EmptyDatasetError, match="there is no file in it"):
        datasets.write("none", tmp_path, PLAIN, [])
    assert "none" not in datasets.known(tmp_path)


def test_a_writer_that_dies_leaves_nothing(tmp_path: Path) -> None:
    def batches() -> Iterator[Batch]:
        yield Batch(IMAGES)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        datasets.write("half", tmp_path, PLAIN, batches())
    assert not (tmp_path / "half").exists()
    assert list((tmp_path / ".staging").iterdir()) == []
    assert "half" not in datasets.known(tmp_path) | datasets.broken(tmp_path)


@pytest.mark.parametrize(
    ("about", "batch"),
    [
        (PLAIN, Batch(IMAGES.reshape(7, 1, 3, 4))),
        (PLAIN, Batch(IMAGES.astype(np.int16))),  # type: ignore[arg-type]
        (PLAIN, Batch(IMAGES, LABELS)),
        (CLASSED, Batch(IMAGES)),
        (CLASSED, Batch(IMAGES, LABELS[:-1])),
        (CLASSED, Batch(IMAGES, LABELS + 1)),
        (CLASSED, Batch(IMAGES, LABELS - 1)),
        (FULL, Batch(IMAGES, LABELS)),
        (FULL, Batch(IMAGES, LABELS, sources=SOURCES)),
        (PLAIN, Batch(IMAGES, sources=SOURCES)),
        (FULL, replace(FULL_BATCH, sources=SOURCES[:-1])),
        (FULL, replace(FULL_BATCH, sources=SOURCES.reshape(7, 3, 4, 1))),
        (FULL, replace(FULL_BATCH, groups=GROUPS[:-1])),
        (FULL, replace(FULL_BATCH, groups=GROUPS.astype(np.int32))),
    ],
)
def test_a_batch_that_does_not_fit_its_card_is_refused(tmp_path: Path, about: About, batch: Batch) -> None:
    with pytest.raises(ValueError, match=r"are not|where the set has"):
        datasets.write("wrong", tmp_path, about, [batch])
    assert not (tmp_path / "wrong").exists()


@pytest.mark.parametrize("name", ["", "Pets", "a b", "../pets", "pets/", ".pets", "p" * 64, "pets\n"])
def test_what_is_no_name_is_refused_before_a_path_is_made(tmp_path: Path, name: str) -> None:
    with pytest.raises(DatasetNameError, match="small letters"):
        write_plain(name, tmp_path / "sets")
    assert list(tmp_path.iterdir()) == []


def test_a_registered_name_is_refused_and_the_set_stays(tmp_path: Path) -> None:
    card = write_plain("plain", tmp_path)
    with pytest.raises(DatasetNameError, match="'plain' is registered already and sets never change: choose another name"):
        datasets.write("plain", tmp_path, PLAIN, [Batch(IMAGES + 1)])
    assert datasets.load("plain", tmp_path).card == card


def test_a_built_in_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetNameError, match="'fashion-mnist-10k' is built in already"):
        write_plain("fashion-mnist-10k", tmp_path)


def test_of_two_writers_of_one_name_the_first_wins(tmp_path: Path) -> None:
    def batches() -> Iterator[Batch]:
        yield Batch(IMAGES)
        write_plain("plain", tmp_path)
        yield Batch(IMAGES)

    with pytest.raises(DatasetNameError, match="registered meanwhile"):
        datasets.write("plain", tmp_path, PLAIN, batches())
    assert datasets.load("plain", tmp_path).card.num_images == 7


def test_a_folder_that_cannot_be_written_to_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DatasetError, match=r"'plain' cannot be written into .*: Not a directory"):
        write_plain("plain", tmp_path / "file" / "sets")


def test_unknown_name_lists_the_known_ones_and_how_to_add(tmp_path: Path) -> None:
    write_plain("pets", tmp_path)
    sentence = "there is no data set 'cats'; known: fashion-mnist-10k, pets; `ganserve datasets add` and POST /datasets register more"
    for read in (datasets.load, datasets.card):
        with pytest.raises(UnknownDatasetError) as error:
            read("cats", tmp_path)
        assert str(error.value) == sentence


@pytest.mark.parametrize("name", ["../pets", "sets/../../pets", "/pets", ".", ".."])
def test_a_path_is_never_a_name(tmp_path: Path, name: str) -> None:
    write_plain("pets", tmp_path)
    with pytest.raises(UnknownDatasetError):
        datasets.load(name, tmp_path / "sets")


def test_an_absent_folder_has_the_built_in_sets(tmp_path: Path) -> None:
    assert list(datasets.known(tmp_path / "absent")) == ["fashion-mnist-10k"]
    assert datasets.broken(tmp_path / "absent") == {}


def test_a_changed_byte_is_found_when_the_set_is_loaded(tmp_path: Path) -> None:
    write_plain("pets", tmp_path)
    path = tmp_path / "pets" / "images.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    with pytest.raises(DamagedDatasetError, match=r"'pets' is damaged: images\.npy does not have the sha256"):
        datasets.load("pets", tmp_path)


def damage_card(folder: Path, change: dict[str, object]) -> None:
    path = folder / "card.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


def test_a_damaged_set_is_named_with_its_reason_and_the_others_are_listed(tmp_path: Path) -> None:
    for name in (
        "short",
        "cardless",
        "newer",
        "renamed",
        "unlabelled",
        "whole",
        "imageless",
        "garbled",
        "sourceless",
        "ungrouped",
        "square",
    ):
        datasets.write(name, tmp_path, CLASSED, classed())
    (tmp_path / "short" / "images.npy").write_bytes(b"")
    (tmp_path / "cardless" / "card.json").unlink()
    damage_card(tmp_path / "newer", {"schema_version": 2})
    damage_card(tmp_path / "renamed", {"name": "other"})
    damage_card(tmp_path / "unlabelled", {"class_names": None})
    damage_card(tmp_path / "sourceless", {"source_shape": [1, 4, 4]})
    damage_card(tmp_path / "ungrouped", {"num_groups": 2})
    damage_card(tmp_path / "square", {"shape": [4, 3]})
    (tmp_path / "imageless" / "images.npy").unlink()
    (tmp_path / "garbled" / "card.json").write_bytes(b"\xff\xfe")
    (tmp_path / "Strange Folder").mkdir()
    (tmp_path / "notes.txt").touch()
    assert list(datasets.known(tmp_path)) == ["fashion-mnist-10k", "whole"]
    reasons = datasets.broken(tmp_path)
    expected = {
        "Strange Folder": "card.json cannot be read",
        "cardless": "card.json cannot be read (No such file or directory)",
        "garbled": "card.json is no card that this version reads",
        "imageless": "images.npy is missing",
        "newer": "schema_version: Input should be 1",
        "renamed": "its card names it 'other'",
        "short": "images.npy has 0 bytes; its card says 212",
        "sourceless": "its card lists the files ['images', 'labels']; expected ['images', 'labels', 'sources']",
        "square": "a shape on its card is not (channels, height, width)",
        "ungrouped": "its card lists the files ['images', 'labels']; expected ['groups', 'images', 'labels']",
        "unlabelled": "its card lists the files ['images', 'labels']; expected ['images']",
    }
    assert list(reasons) == list(expected)
    for name, part in expected.items():
        assert part in reasons[name]
        assert reasons[name].endswith(f"delete {tmp_path / name} and add the set again")


def test_reading_a_damaged_set_says_why(tmp_path: Path) -> None:
    write_plain("pets", tmp_path)
    (tmp_path / "pets" / "images.npy").unlink()
    for read in (datasets.load, datasets.card):
        with pytest.raises(DamagedDatasetError, match=r"'pets' is damaged: images\.npy is missing; delete"):
            read("pets", tmp_path)


def rewrite(folder: Path, name: str, array: np.ndarray) -> None:
    """Another array, with a card that hashes it rightly and still tells of the first."""
    card = json.loads((folder / "card.json").read_text())
    np.save(folder / f"{name}.npy", array)
    data = (folder / f"{name}.npy").read_bytes()
    card["files"][name] |= {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}
    (folder / "card.json").write_text(json.dumps(card))


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("images", IMAGES[:6]),
        ("images", IMAGES.astype(np.int16)),
        ("labels", LABELS[:6]),
        ("labels", LABELS.astype(np.float64)),
        ("sources", SOURCES[:6]),
        ("sources", IMAGES),
        ("groups", GROUPS[:6]),
        ("groups", GROUPS.astype(np.int32)),
    ],
)
def test_arrays_that_are_unlike_the_card_are_refused(tmp_path: Path, name: str, array: np.ndarray) -> None:
    datasets.write("pets", tmp_path, FULL, [FULL_BATCH])
    rewrite(tmp_path / "pets", name, array)
    with pytest.raises(DamagedDatasetError, match=rf"{name}\.npy holds .*, unlike its card"):
        datasets.load("pets", tmp_path)


class Trap:
    """Touches a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["images", "labels", "sources", "groups"])
def test_a_pickle_is_never_opened(tmp_path: Path, name: str) -> None:
    datasets.write("pets", tmp_path, FULL, [FULL_BATCH])
    rewrite(tmp_path / "pets", name, np.array([Trap(tmp_path / "sprung")], dtype=object))
    with pytest.raises(DamagedDatasetError, match="Python objects"):
        datasets.load("pets", tmp_path)
    assert not (tmp_path / "sprung").exists()


def test_a_damaged_built_in_set_says_to_install_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_plain("pets", tmp_path / "builtin")
    (tmp_path / "builtin" / "pets" / "images.npy").unlink()
    monkeypatch.setattr(datasets, "BUILTIN", tmp_path / "builtin")
    with pytest.raises(DamagedDatasetError, match="it is built in: install ganserve again"):
        datasets.load("pets", tmp_path)


def test_the_built_in_set_is_ten_thousand_fashion_items_of_ten_classes(tmp_path: Path) -> None:
    built_in = datasets.load("fashion-mnist-10k", tmp_path)
    assert built_in.images.shape == (10_000, 1, 28, 28)
    assert built_in.labels is not None
    assert np.bincount(built_in.labels).tolist() == [1000] * 10
    assert built_in.card.class_names is not None
    assert built_in.card.class_names[9] == "ankle boot"  # what the first test image shows
    assert built_in.labels[0] == 9
    assert (built_in.images / 255).mean() == pytest.approx(0.2868, abs=1e-4)
    folder = datasets.BUILTIN / "fashion-mnist-10k"
    assert "Copyright © 2017 Zalando SE" in (folder / "LICENSE").read_text()
    assert "github.com/zalandoresearch/fashion-mnist" in (folder / "NOTICE").read_text()


def test_content_hashes_of_sets_without_sources_and_groups_are_what_they_always_were(tmp_path: Path) -> None:
    """Of the sets at the head of this file, as version 0.1.0 wrote them."""
    assert write_plain("plain", tmp_path).content_sha256 == "c44452d3d6a97780e6c4ef1f21fc195056c91430c2bafbd0199426b18e0822c1"
    assert (
        datasets.write("pets", tmp_path, CLASSED, classed(2)).content_sha256
        == "946f078d262d3af6d20ee3a5e49cfd34cc382ff20c6169f1a7181debeeba99e9"
    )


def test_the_built_in_set_written_again_has_the_same_content_hash(tmp_path: Path) -> None:
    built_in = datasets.load("fashion-mnist-10k", tmp_path)
    about = About((1, 28, 28), "a copy", "MIT", built_in.card.class_names)
    copy = datasets.write("copy", tmp_path, about, [Batch(built_in.images, built_in.labels)])
    assert copy.content_sha256 == built_in.card.content_sha256
    assert copy.files == built_in.card.files


def test_a_set_that_would_fill_the_disk_is_refused_before_it_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = RESERVED_BYTES + IMAGES.nbytes - 1
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(free, 0, free))
    with pytest.raises(DatasetError, match=f"'full' wants {IMAGES.nbytes} more bytes, and the disk has {free:,}, of which 67,108,864 are"):
        datasets.write("full", tmp_path, PLAIN, [Batch(IMAGES[:6]), Batch(IMAGES)])
    assert list((tmp_path / ".staging").iterdir()) == [] == list(tmp_path.glob("full"))
    datasets.write("less", tmp_path, PLAIN, [Batch(IMAGES[:6])])
