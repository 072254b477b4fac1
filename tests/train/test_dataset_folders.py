import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training import datasets
from training.dataset_folders import batch_size, pictures_in
from training.datasets import Dataset, DatasetError, EmptyDatasetError


def picture(path: Path, colour: object = "red", mode: str = "RGB", size: tuple[int, int] = (12, 10)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)  # type: ignore[arg-type]
    return path


def register(folder: Path, size: int = 8, channels: int | None = None) -> Dataset:
    pictures = pictures_in(folder, size=size, channels=channels)
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
    for index in range(batch_size((1, 8, 8)) + 3):
        picture(tmp_path / "own" / f"{index:04}.png", index % 256, mode="L")
    (tmp_path / "own" / "0000.txt").touch()
    loaded = register(tmp_path / "own")
    images = loaded.images
    assert len(loaded.card.skipped) == 1
    assert images[:, 0, 0, 0].tolist() == [index % 256 for index in range(len(images))]
    assert len(images) == 259


def test_a_batch_never_takes_more_than_64_mebibytes() -> None:
    assert batch_size((3, 64, 64)) == 256
    assert batch_size((3, 1024, 1024)) == 21


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
