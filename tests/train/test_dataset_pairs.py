from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training import datasets
from training.dataset_folders import pictures_in
from training.dataset_pairs import pairs_in
from training.datasets import Dataset, DatasetError, EmptyDatasetError


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def noise(width: int, height: int, seed: int = 0) -> np.ndarray:
    """Random colours, coarse enough that a resized picture still shows them: (H, W, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def flat(colour: object, width: int = 8, height: int = 8, mode: str = "RGB") -> np.ndarray:
    return np.asarray(Image.new(mode, (width, height), colour))  # type: ignore[arg-type]


def register(folder: Path, channels: int | None = None, source_channels: int | None = None, *, swap: bool = False) -> Dataset:
    pictures = pairs_in(folder, size=8, channels=channels, source_channels=source_channels, swap=swap)
    card = datasets.write("own", folder.parent / "sets", pictures.about, pictures.batches)
    assert card.num_images + len(card.skipped) == pictures.num_files
    return datasets.load("own", folder.parent / "sets")


def sources_of(dataset: Dataset) -> np.ndarray:
    assert dataset.sources is not None
    return dataset.sources


def channels_first(pixels: np.ndarray) -> np.ndarray:
    return pixels.transpose(2, 0, 1)


# --- side by side -------------------------------------------------------------------------------------------------------------


def test_the_left_half_is_the_source_and_the_right_half_the_target(tmp_path: Path) -> None:
    sides = [noise(16, 8, seed) for seed in range(3)]
    for index, pixels in enumerate(sides):
        save(tmp_path / "own" / "train" / f"{index}.png", pixels)
    loaded = register(tmp_path / "own")
    assert np.array_equal(sources_of(loaded), [channels_first(pixels[:, :8]) for pixels in sides])
    assert np.array_equal(loaded.images, [channels_first(pixels[:, 8:]) for pixels in sides])
    assert loaded.card.source_shape == loaded.card.shape == (3, 8, 8)
    assert loaded.card.class_names is None
    assert loaded.card.source == "the folder own, in pairs"


def test_the_sides_can_be_swapped(tmp_path: Path) -> None:
    save(tmp_path / "own" / "a.png", pixels := noise(16, 8))
    loaded = register(tmp_path / "own", swap=True)
    assert np.array_equal(sources_of(loaded)[0], channels_first(pixels[:, 8:]))
    assert np.array_equal(loaded.images[0], channels_first(pixels[:, :8]))
    assert loaded.card.source == "the folder own, in pairs, source and target swapped"


def test_both_halves_are_cropped_and_resized_alike(tmp_path: Path) -> None:
    half = noise(40, 24)
    save(tmp_path / "own" / "a.png", np.concatenate([half, half], axis=1))
    loaded = register(tmp_path / "own")
    assert np.array_equal(sources_of(loaded), loaded.images)
    save(tmp_path / "single" / "a.png", half)
    assert np.array_equal(loaded.images, next(iter(pictures_in(tmp_path / "single", size=8).batches)).images), "as any other picture"


def test_a_picture_of_an_odd_width_and_what_is_no_picture_are_left_out(tmp_path: Path) -> None:
    save(tmp_path / "own" / "a.png", noise(17, 8))
    save(tmp_path / "own" / "b.png", noise(16, 8))
    (tmp_path / "own" / "notes.txt").write_text("no picture")
    (tmp_path / "own" / ".hidden").touch()
    card = register(tmp_path / "own").card
    assert card.num_images == 1
    assert card.skipped[:2] == (".hidden: it is hidden", "a.png: its width of 17 pixels is odd, so it has no equal halves")
    assert card.skipped[2].startswith("notes.txt: this is no picture that can be read")


def test_grey_pictures_make_grey_pairs_and_either_side_can_be_chosen(tmp_path: Path) -> None:
    save(tmp_path / "own" / "a.png", flat(90, 16, mode="L"))
    assert pairs_in(tmp_path / "own").about.shape[0] == 1
    save(tmp_path / "own" / "b.png", np.concatenate([flat((255, 0, 0)), flat((0, 0, 255))], axis=1))
    about = pairs_in(tmp_path / "own").about
    assert about.source_shape is not None
    assert (about.source_shape[0], about.shape[0]) == (3, 3)
    loaded = register(tmp_path / "own", source_channels=1)
    assert sources_of(loaded).shape == (2, 1, 8, 8)
    assert sources_of(loaded)[:, 0, 0, 0].tolist() == [90, 76]
    assert loaded.images[:, :, 0, 0].tolist() == [[90, 90, 90], [0, 0, 255]]


# --- two folders --------------------------------------------------------------------------------------------------------------


def test_pictures_of_equal_paths_in_two_folders_are_pairs(tmp_path: Path) -> None:
    for name in ("b", "deep/a"):
        save(tmp_path / "own" / "source" / f"{name}.bmp", noise(8, 8, seed=len(name)))
        save(tmp_path / "own" / "target" / f"{name}.png", noise(8, 8, seed=100 + len(name)))
    loaded = register(tmp_path / "own")
    assert np.array_equal(sources_of(loaded), [channels_first(noise(8, 8, seed)) for seed in (1, 6)])
    assert np.array_equal(loaded.images, [channels_first(noise(8, 8, seed)) for seed in (101, 106)])
    swapped = next(iter(pairs_in(tmp_path / "own", size=8, swap=True).batches))
    assert np.array_equal(swapped.images, sources_of(loaded))
    assert swapped.sources is not None
    assert np.array_equal(swapped.sources, loaded.images)


def test_partners_of_other_sizes_but_equal_proportions_are_cropped_alike(tmp_path: Path) -> None:
    """Two of the eight columns are black: the crop begins at a sixth of the width, and white at a third."""
    for folder, scale in (("source", 12), ("target", 24)):
        pixels = np.full((2 * scale, 3 * scale, 3), 255, np.uint8)
        pixels[:, :scale] = 0
        save(tmp_path / "own" / folder / "a.png", pixels)
    loaded = register(tmp_path / "own")
    assert np.abs(sources_of(loaded).astype(int) - loaded.images).max() <= 2
    assert (loaded.images[0, 0, 0] > 127).tolist() == [False, False, *[True] * 6]


def test_each_side_is_grey_where_all_of_its_own_pictures_are(tmp_path: Path) -> None:
    save(tmp_path / "own" / "source" / "a.png", flat(90, mode="L"))
    save(tmp_path / "own" / "source" / "alone.png", flat("red"))
    save(tmp_path / "own" / "target" / "a.png", flat("red"))
    loaded = register(tmp_path / "own")
    assert (loaded.card.source_shape, loaded.card.shape) == ((1, 8, 8), (3, 8, 8))
    assert sources_of(loaded)[0, 0, 0, 0] == 90
    grey = next(iter(pairs_in(tmp_path / "own", size=8, channels=1).batches))
    assert grey.images[0, :, 0, 0].tolist() == [76]


def test_what_has_no_partner_or_not_one_that_fits_is_left_out_with_a_sentence_each(tmp_path: Path) -> None:
    own = tmp_path / "own"
    for name in ("source/whole.png", "target/whole.png", "source/alone.png", "target/lonely.png", "extra.png", "more/other.png"):
        save(own / name, noise(8, 8))
    save(own / "source" / "wide.png", noise(16, 8))
    save(own / "target" / "wide.png", noise(8, 16))
    save(own / "target" / "whole.webp", noise(8, 8))
    (own / "target" / "whole.json").write_text("{}")
    save(own / "source" / "cut.png", noise(64, 64))
    cut = save(own / "target" / "cut.png", noise(64, 64))
    cut.write_bytes(cut.read_bytes()[:200])
    card = register(own).card
    assert card.num_images == 1
    sentences = dict(sentence.split(": ", 1) for sentence in card.skipped)
    assert sentences.pop("source/cut.png and target/cut.png").startswith("of target/cut.png, this picture is damaged or cut off")
    assert sentences == {
        "extra.png": "it lies beside the folders source and target",
        "more/other.png": "it lies beside the folders source and target",
        "source/alone.png": "there is no picture of its name in target",
        "target/lonely.png": "there is no picture of its name in source",
        "target/whole.json": "it is no picture that can be read",
        "target/whole.webp": "it has the name of target/whole.png, which is taken",
        "source/wide.png and target/wide.png": "they have different proportions, 16 x 8 and 8 x 16 pixels, "
        "so they would not be cropped alike",
    }


# --- arguments ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alone", ["source", "target"])
def test_one_of_the_two_folders_alone_is_refused(tmp_path: Path, alone: str) -> None:
    save(tmp_path / "own" / alone / "a.png", noise(16, 8))
    with pytest.raises(DatasetError, match=f"own holds the folder {alone} alone: give one that holds both source and target, or"):
        pairs_in(tmp_path / "own")


def test_wrong_arguments_are_refused_with_what_is_allowed(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"nowhere is no folder"):
        pairs_in(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match="size 2 is not allowed: give 4 to 1024 pixels"):
        pairs_in(tmp_path, size=2)
    for wrong in ({"channels": 2}, {"source_channels": 2}):
        with pytest.raises(DatasetError, match=r"2 channels are not allowed: give 1 \(grey\) or 3 \(colour\)"):
            pairs_in(tmp_path, **wrong)
    (tmp_path / "own").mkdir()
    with pytest.raises(EmptyDatasetError, match="there is no file in it"):
        register(tmp_path / "own")
