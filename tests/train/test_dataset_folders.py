import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training import datasets
from training.dataset_folders import batch_size, pictures_in
from training.datasets import About, Dataset, DatasetError, EmptyDatasetError

ABOUT = About((1, 8, 8), "a test", "CC0")


def picture(path: Path, colour: object = "red", mode: str = "RGB", size: tuple[int, int] = (12, 10)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)  # type: ignore[arg-type]
    return path


def register(folder: Path, size: int = 8, channels: int | None = None, *, tiles: bool = False) -> Dataset:
    pictures = pictures_in(folder, size=size, channels=channels, tiles=tiles)
    datasets.write("own", folder.parent / "sets", pictures.about, pictures.batches)
    return datasets.load("own", folder.parent / "sets")


def test_pictures_of_any_size_and_mode_become_one_shape_in_the_order_of_their_paths(tmp_path: Path) -> None:
    folder = tmp_path / "own"
    picture(folder / "a.png", (255, 0, 0), size=(40, 9))
    picture(folder / "b.jpg", (0, 0, 255), size=(9, 40))
    picture(folder / "c.gif", 0, mode="P")
    picture(folder / "d.bmp", 255, mode="L", size=(3, 3))
    picture(folder / "e.webp", (0, 0, 0, 0), mode="RGBA")
    images = register(folder).images
    assert images.shape == (5, 3, 8, 8)
    means = images.mean(axis=(2, 3))
    assert np.abs(means - [[255, 0, 0], [0, 0, 255], [0, 0, 0], [255, 255, 255], [255, 255, 255]]).max() < 3


def test_the_centre_is_kept(tmp_path: Path) -> None:
    picture(tmp_path / "own" / "a.png", "white", size=(24, 8))
    with Image.open(tmp_path / "own" / "a.png") as image:
        image.paste("black", (0, 0, 8, 8))
        image.paste("black", (16, 0, 24, 8))
        image.save(tmp_path / "own" / "a.png")
    assert register(tmp_path / "own").images.min() == 255


@pytest.mark.parametrize("mode", ["1", "L", "LA", "I;16"])
def test_where_every_picture_is_grey_there_is_one_channel(tmp_path: Path, mode: str) -> None:
    picture(tmp_path / "own" / "a.png", 0 if mode != "LA" else (0, 255), mode=mode)
    picture(tmp_path / "own" / "b.png", 90, mode="L")
    images = register(tmp_path / "own").images
    assert images.shape == (2, 1, 8, 8)
    assert images[:, 0, 0, 0].tolist() == [0, 90]


def test_one_colour_picture_makes_three_channels(tmp_path: Path) -> None:
    picture(tmp_path / "own" / "a.png", 90, mode="L")
    picture(tmp_path / "own" / "b.png", (90, 90, 90))
    assert register(tmp_path / "own").images.shape == (2, 3, 8, 8)


def test_the_channels_that_are_asked_for_win(tmp_path: Path) -> None:
    picture(tmp_path / "own" / "a.png", (255, 0, 0))
    picture(tmp_path / "own" / "b.png", 90, mode="L")
    assert register(tmp_path / "own", channels=1).images[:, 0, 0, 0].tolist() == [76, 90]


def test_sub_folders_are_classes(tmp_path: Path) -> None:
    folder = tmp_path / "own"
    for name in ("dog/1.png", "cat/2.png", "cat/kittens/1.png", "cat/1.png"):
        picture(folder / name)
    (folder / "README.txt").write_text("no picture, so it may lie beside them")
    loaded = register(folder)
    assert loaded.card.class_names == ("cat", "dog")
    assert loaded.labels is not None
    assert loaded.labels.tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize("beside", ["cat.png", "only/1.png"])
def test_a_picture_beside_the_sub_folders_or_one_sub_folder_alone_makes_no_classes(tmp_path: Path, beside: str) -> None:
    folder = tmp_path / "own"
    picture(folder / beside)
    if beside == "cat.png":
        picture(folder / "cat" / "1.png")
        picture(folder / "dog" / "1.png")
    loaded = register(folder)
    assert loaded.card.class_names is None
    assert loaded.labels is None


def test_pictures_that_cost_a_set_its_classes_are_named(tmp_path: Path) -> None:
    for name in ("cat/1.png", "dog/1.png"):
        picture(tmp_path / name)
    assert pictures_in(tmp_path).about.notes == ()
    picture(tmp_path / "a.png")
    assert pictures_in(tmp_path).about.notes == (
        "the set has no classes, because a.png lies beside the sub-folders cat, dog: move every picture into a sub-folder for classes",
    )
    for name in ("b.png", "c.png", "d.png", "e.png"):
        picture(tmp_path / name)
    (note,) = pictures_in(tmp_path).about.notes
    assert "because a.png, b.png, c.png and 2 more lie beside the sub-folders cat, dog:" in note


def test_pictures_beside_one_sub_folder_cost_no_classes(tmp_path: Path) -> None:
    for name in ("cat/1.png", "1.png"):
        picture(tmp_path / name)
    assert pictures_in(tmp_path).about.notes == ()


def test_what_is_no_picture_is_left_out_with_a_sentence_each(tmp_path: Path) -> None:
    folder = tmp_path / "own"
    whole = picture(folder / "a.png", size=(64, 64)).read_bytes()
    (folder / "cut.png").write_bytes(whole[:60])
    (folder / "notes.txt").write_text("no picture")
    (folder / "empty.jpg").touch()
    (folder / ".hidden").touch()
    picture(folder / ".cache" / "b.png")
    (tmp_path / "elsewhere").mkdir()
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    (folder / "gone.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(folder / "pipe")
    pictures = pictures_in(folder, size=8)
    card = datasets.write("own", tmp_path / "sets", pictures.about, pictures.batches)
    assert card.num_images == 1
    assert pictures.num_files == 1 + len(card.skipped)
    reasons = dict(sentence.split(": ", 1) for sentence in card.skipped)
    assert set(reasons) == {".hidden", ".cache", "link", "gone.png", "pipe", "cut.png", "empty.jpg", "notes.txt"}
    assert reasons[".cache"] == "it is hidden"
    assert reasons["link"] == "it is a link to a folder"
    assert reasons["gone.png"] == reasons["pipe"] == "it is neither a file nor a folder"
    assert reasons["notes.txt"].startswith("this is no picture that can be read; a whole PNG")
    assert reasons["cut.png"].startswith("this picture is damaged or cut off")


def test_a_left_out_file_does_not_shift_the_labels(tmp_path: Path) -> None:
    folder = tmp_path / "own"
    for name in ("cat/1.png", "dog/2.png"):
        picture(folder / name)
    whole = picture(folder / "dog" / "1.png", size=(64, 64)).read_bytes()
    (folder / "dog" / "1.png").write_bytes(whole[:60])
    labels = register(folder).labels
    assert labels is not None
    assert labels.tolist() == [0, 1]


def test_a_file_name_that_is_no_utf_8_is_named_on_the_card(tmp_path: Path) -> None:
    picture(tmp_path / "own" / "a.png")
    Path(os.fsdecode(os.fsencode(tmp_path / "own") + b"/\xff.txt")).write_text("no picture")
    assert register(tmp_path / "own").card.skipped[0].startswith("\N{REPLACEMENT CHARACTER}.txt: this is no picture")


def test_more_pictures_than_one_batch_are_all_written(tmp_path: Path) -> None:
    for index in range(batch_size(ABOUT) + 3):
        picture(tmp_path / "own" / f"{index:04}.png", index % 256, mode="L")
    (tmp_path / "own" / "0000.txt").touch()
    loaded = register(tmp_path / "own")
    images = loaded.images
    assert len(loaded.card.skipped) == 1
    assert images[:, 0, 0, 0].tolist() == [index % 256 for index in range(len(images))]
    assert len(images) == 259


def test_a_batch_never_takes_more_than_64_mebibytes() -> None:
    assert batch_size(About((3, 64, 64), "a test", "CC0")) == 256
    assert batch_size(About((3, 1024, 1024), "a test", "CC0")) == 21
    assert batch_size(About((3, 1024, 1024), "a test", "CC0", source_shape=(3, 1024, 1024))) == 10


def test_a_folder_without_pictures_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    with pytest.raises(EmptyDatasetError, match="'own' would be empty: there is no file in it"):
        register(tmp_path / "own")
    (tmp_path / "own" / "a.txt").touch()
    with pytest.raises(EmptyDatasetError, match=r"all 1 files were left out, the first because a\.txt: this is no picture"):
        register(tmp_path / "own")


def test_wrong_arguments_are_refused_with_what_is_allowed(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"nowhere is no folder"):
        pictures_in(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match="size 2 is not allowed: give 4 to 1024 pixels"):
        pictures_in(tmp_path, size=2)
    with pytest.raises(DatasetError, match=r"2 channels are not allowed: give 1 \(grey\) or 3 \(colour\)"):
        pictures_in(tmp_path, channels=2)


# --- tiles --------------------------------------------------------------------------------------------------------------------


def noise(path: Path, width: int, height: int, seed: int = 0) -> np.ndarray:
    """A picture of random pixels, and those as (H, W, 3)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def test_tiles_are_the_pixels_of_the_picture_as_they_are(tmp_path: Path) -> None:
    pixels = noise(tmp_path / "own" / "a.png", width=27, height=19)
    loaded = register(tmp_path / "own", tiles=True)
    wanted = [pixels[top : top + 8, left : left + 8].transpose(2, 0, 1) for top in (1, 9) for left in (1, 9, 17)]
    assert np.array_equal(loaded.images, wanted)


def test_tiles_of_one_picture_are_one_group(tmp_path: Path) -> None:
    noise(tmp_path / "own" / "a.png", 16, 8, seed=1)
    noise(tmp_path / "own" / "b.png", 7, 64, seed=2)
    noise(tmp_path / "own" / "c.png", 8, 24, seed=3)
    pictures = pictures_in(tmp_path / "own", size=8, tiles=True)
    loaded = register(tmp_path / "own", tiles=True)
    assert loaded.groups is not None
    assert len({*loaded.groups[:2].tolist()}) == len({*loaded.groups[2:].tolist()}) == 1
    assert loaded.groups[0] != loaded.groups[2]
    assert (loaded.card.num_images, loaded.card.num_groups) == (5, 2)
    assert loaded.card.skipped == ("b.png: this picture has 7 x 64 pixels, which is less than a tile of 8 x 8",)
    assert pictures.num_files == 6
    assert loaded.card.source == "the folder own, cut into tiles"


def test_tiles_have_the_class_of_their_picture(tmp_path: Path) -> None:
    noise(tmp_path / "own" / "cat" / "a.png", 16, 8, seed=1)
    noise(tmp_path / "own" / "dog" / "b.png", 8, 24, seed=2)
    loaded = register(tmp_path / "own", tiles=True)
    assert loaded.labels is not None
    assert loaded.labels.tolist() == [0, 0, 1, 1, 1]


def test_many_tiles_of_one_picture_come_whole_in_their_order(tmp_path: Path) -> None:
    pixels = noise(tmp_path / "own" / "a.png", 8 * 20, 8 * 20)
    noise(tmp_path / "own" / "b.png", 8, 8)
    images = register(tmp_path / "own", tiles=True).images
    assert len(images) == 401
    assert np.array_equal(images[399], pixels[-8:, -8:].transpose(2, 0, 1))
