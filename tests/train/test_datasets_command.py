import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from published_files import publish, write_idx_files

from ganserve.datasets import datasets_app
from training import datasets
from training.contract import TrainConfig, UserError
from training.datasets import DatasetError, DatasetNameError, EmptyDatasetError, UnknownDatasetError
from training.files import runs


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GANSERVE_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("GANSERVE_MODELS", str(tmp_path / "models"))
    return tmp_path / "state"


def run(*tokens: object) -> None:
    datasets_app([str(token) for token in tokens], result_action="return_value")


def pictures(folder: Path, num_images: int = 3) -> Path:
    folder.mkdir()
    for index in range(num_images):
        Image.new("L", (8, 8), index).save(folder / f"{index:03}.png")
    return folder


def mnist_files(folder: Path, monkeypatch: pytest.MonkeyPatch, num_images: int = 2) -> Path:
    write_idx_files(folder, "train", np.zeros((num_images, 28, 28)), np.zeros(num_images))
    publish("mnist", folder, monkeypatch)
    return folder


def test_a_folder_is_added_and_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("add", "own", pictures(tmp_path / "p"), "--size", 16, "--channels", 3, "--licence", "CC0")
    run("list")
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "registered own: 3 images of 3 x 16 x 16",
        "fashion-mnist-10k: 10,000 images of 1 x 28 x 28, 10 classes",
        "own: 3 images of 3 x 16 x 16",
    ]


def test_a_folder_is_64_pixels_and_grey_where_it_can_be(tmp_path: Path, state: Path) -> None:
    run("add", "own", pictures(tmp_path / "p"))
    card = datasets.card("own", state / "datasets")
    assert card.shape == (1, 64, 64)
    assert card.licence == "not stated"
    assert card.source == "the folder p"


def test_a_published_set_is_added_from_files_at_hand_under_any_name(tmp_path: Path, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = mnist_files(tmp_path / "files", monkeypatch)
    run("add", "mnist", "--data-dir", files)
    run("add", "mnist", "--data-dir", files, "--size", 32, "--as", "mnist-32")
    assert datasets.card("mnist", state / "datasets").shape == (1, 28, 28)
    assert datasets.card("mnist-32", state / "datasets").shape == (1, 32, 32)


def test_the_state_folder_can_be_named(tmp_path: Path, state: Path) -> None:
    run("add", "own", pictures(tmp_path / "p"), "--state", tmp_path / "elsewhere")
    assert "own" in datasets.known(tmp_path / "elsewhere" / "datasets")
    assert not state.exists()


def test_left_out_files_are_counted_and_the_card_names_them_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = pictures(tmp_path / "p")
    for index in range(7):
        (folder / f"note-{index}.txt").touch()
    run("add", "own", folder)
    told = capsys.readouterr().err
    assert "left out 7 files; `ganserve datasets show own` names them:" in told
    assert told.count("this is no picture") == 5
    run("show", "own")
    assert capsys.readouterr().out.count("left out  note-") == 7


def test_without_a_terminal_progress_is_at_most_ten_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run("add", "mnist", "--data-dir", mnist_files(tmp_path / "files", monkeypatch, num_images=5000))  # 20 batches
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 10
    assert lines[-1] == "5,000 of 5,000 images"


def test_show_tells_what_is_on_the_card_and_writes_a_sheet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("show", "fashion-mnist-10k", "--sheet", tmp_path / "sheet.png")
    told = capsys.readouterr().out
    assert "fashion-mnist-10k: 10,000 images of 1 x 28 x 28, 10 classes" in told
    assert "licence   MIT; Copyright (c) 2017 Zalando SE" in told
    assert "sneaker 1,000, bag 1,000, ankle boot 1,000" in told
    images = datasets.load("fashion-mnist-10k", tmp_path).images
    with Image.open(tmp_path / "sheet.png") as sheet:
        pixels = np.asarray(sheet)
    assert pixels.shape == (10 * 30 - 2, 6 * 30 - 2), "each class begins a row"
    labels = datasets.load("fashion-mnist-10k", tmp_path).labels
    assert labels is not None
    assert np.array_equal(pixels[:28, :28], images[labels == 0][0, 0])
    assert np.array_equal(pixels[-28:, -28:], images[labels == 9][-1, 0])


def test_a_sheet_of_few_colour_images_leaves_the_rest_white(tmp_path: Path) -> None:
    run("add", "own", pictures(tmp_path / "p"), "--size", 8, "--channels", 3)
    run("show", "own", "--sheet", tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        pixels = np.asarray(sheet)
    assert pixels.shape == (8, 8 * 10 - 2, 3)
    assert pixels[0, ::10, 0].tolist() == [0, 1, 2, 255, 255, 255, 255, 255]


def sides(folder: Path, num_pairs: int = 3) -> Path:
    """Pairs of a red source and a grey target, side by side."""
    folder.mkdir()
    for index in range(num_pairs):
        image = Image.new("RGB", (16, 8), (index, index, index))
        image.paste("red", (0, 0, 8, 8))
        image.save(folder / f"{index:03}.png")
    return folder


def test_pairs_are_added_listed_and_shown_side_by_side(tmp_path: Path, state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("add", "own", sides(tmp_path / "p"), "--pairs", "--size", 8, "--channels", 1, "--licence", "CC0")
    run("list")
    run("show", "own", "--sheet", tmp_path / "sheet.png")
    told = capsys.readouterr().out.splitlines()
    line = "own: 3 images of 1 x 8 x 8, paired with sources of 3 x 8 x 8"
    assert told[0] == f"registered {line}"
    assert told[2:4] == [line, line]
    with Image.open(tmp_path / "sheet.png") as sheet:
        pixels = np.asarray(sheet)
    assert pixels.shape == (8, 8 * 18 - 2, 3)
    assert pixels[3, 4:56:8].tolist() == [*([255, 0, 0], [0, 0, 0]), *([255, 0, 0], [1, 1, 1]), *([255, 0, 0], [2, 2, 2]), [255] * 3]
    assert datasets.card("own", state / "datasets").licence == "CC0"


def test_pairs_can_be_swapped_and_their_sources_made_grey(tmp_path: Path, state: Path) -> None:
    run("add", "own", sides(tmp_path / "p"), "--pairs", "--swap", "--source-channels", 1)
    loaded = datasets.load("own", state / "datasets")
    assert (loaded.card.source_shape, loaded.card.shape) == ((1, 64, 64), (3, 64, 64))
    assert loaded.images[:, :, 0, 0].tolist() == [[255, 0, 0]] * 3


def test_tiles_are_added_and_shown_in_groups(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("add", "own", sides(tmp_path / "p"), "--tiles", "--size", 8)
    run("show", "own")
    told = capsys.readouterr().out.splitlines()
    assert told[:2] == ["registered own: 6 images of 3 x 8 x 8, 3 groups", "own: 6 images of 3 x 8 x 8, 3 groups"]


def test_what_costs_a_folder_its_classes_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = pictures(tmp_path / "p")
    for name, picture in (("cat", "000.png"), ("dog", "001.png")):
        (folder / name).mkdir()
        (folder / picture).rename(folder / name / picture)
    run("add", "own", folder)
    told = capsys.readouterr()
    assert told.out == "registered own: 3 images of 1 x 64 x 64\n"
    assert told.err.startswith("the set has no classes, because 002.png lies beside the sub-folders cat, dog: move every picture")


def test_list_names_a_damaged_set_and_the_others(tmp_path: Path, state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("add", "own", pictures(tmp_path / "p"))
    (state / "datasets" / "own" / "images.npy").unlink()
    capsys.readouterr()
    run("list")
    told = capsys.readouterr()
    assert told.out == "fashion-mnist-10k: 10,000 images of 1 x 28 x 28, 10 classes\n"
    assert told.err.startswith("data set 'own' is damaged: images.npy is missing; delete ")


@pytest.mark.parametrize(
    ("tokens", "sentence"),
    [
        (["mnist", "--channels", "3"], "--channels is for a folder of pictures; give its PATH after the name"),
        (["mnist", "--tiles"], "--tiles is for a folder of pictures; give its PATH after the name"),
        (["mnist", "--pairs"], "--pairs is for a folder of pictures; give its PATH after the name"),
        (["mnist", "--swap"], "--swap is for a folder of pictures; give its PATH after the name"),
        (["mnist", "--source-channels", "3"], "--source-channels is for a folder of pictures; give its PATH after the name"),
        (["own", "p", "--swap"], "--swap is for pairs; give --pairs too, or leave it out"),
        (["own", "p", "--source-channels", "1"], "--source-channels is for pairs; give --pairs too, or leave it out"),
        (
            ["own", "p", "--tiles", "--pairs"],
            "--tiles is for pictures without sources, since a super-resolution model makes its own;",
        ),
        (["mnist", "--licence", "CC0"], "--licence is for a folder of pictures; give its PATH after the name"),
        (["own", "p", "--split", "test"], "--split is for published sets; leave it out with a PATH"),
        (["own", "p", "--as", "other"], "--as is for published sets; leave it out with a PATH"),
        (["own", "p", "--data-dir", "p"], "--data-dir is for published sets; leave it out with a PATH"),
        (["mnist", "p"], "mnist names a published set: choose another name for p, or give its files with --data-dir p"),
        (["mnist", "--data-dir", "nowhere"], "--data-dir nowhere is no folder"),
        (["own"], "there is no published set 'own'; known: mnist"),
        (["own", "nowhere"], "nowhere is no folder"),
        (["own", "p", "--size", "0"], "size 0 is not allowed"),
    ],
)
def test_wrong_options_are_refused_with_what_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokens: list[str], sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    pictures(tmp_path / "p")
    with pytest.raises(DatasetError) as error:
        run("add", *tokens)
    assert str(error.value).startswith(sentence)


def test_a_name_that_is_taken_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    run("add", "own", pictures(tmp_path / "p"))
    with pytest.raises(DatasetNameError, match="'own' is registered already"):
        run("add", "own", tmp_path / "nowhere")
    with pytest.raises(DatasetNameError, match="'own' is registered already"):
        run("add", "mnist", "--as", "own")


def test_errors_are_one_sentence_of_one_family(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(EmptyDatasetError, match="'own' would be empty"):
        run("add", "own", tmp_path / "empty")
    with pytest.raises(UnknownDatasetError, match="there is no data set 'own'"):
        run("show", "own")
    with pytest.raises(DatasetError, match=r"the sheet cannot be written to .*: No such file"):
        run("show", "fashion-mnist-10k", "--sheet", tmp_path / "nowhere" / "sheet.png")


def test_an_archive_alone_names_its_set(tmp_path: Path, state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = pictures(tmp_path / "p")
    shutil.make_archive(str(tmp_path / "My Pets"), "zip", folder)
    run("add", tmp_path / "My Pets.zip", "--size", 8)
    assert capsys.readouterr().out == "registered my-pets: 3 images of 1 x 8 x 8\n"
    assert datasets.card("my-pets", state / "datasets").source == "the archive My Pets.zip"
    run("add", folder, "--size", 8)
    assert datasets.card("p", state / "datasets").content_sha256 == datasets.card("my-pets", state / "datasets").content_sha256
    (tmp_path / "_").mkdir()
    with pytest.raises(DatasetError, match="tells no name for its set: give one before it"):
        run("add", tmp_path / "_")


def test_the_card_tells_classes_copies_sizes_and_captions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = pictures(tmp_path / "p")
    Image.new("L", (20, 10), 0).save(folder / "copy.png")
    (folder / "metadata.csv").write_text(
        "file_name,label,text,by\n000.png,cat,one,me\n001.png,dog,,me\n002.png,dog,two,me\ncopy.png,dog,,me\n"
    )
    run("add", folder, "--size", 8)
    run("show", "p")
    told = capsys.readouterr().out
    for line in (
        "classes   cat 1, dog 3",
        "captions  2",
        "copies    1 of the images equal an earlier one",
        "pictures  of 8 x 8 to 20 x 10 pixels, the median 8 x 8",
        "note      of metadata.csv, nothing is read but file_name, label and text; it has by too",
    ):
        assert line in told.splitlines()


def test_a_sheet_is_of_one_class_where_one_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run("sheet", "fashion-mnist-10k", "--label", "bag", "--num-images", 3)
    with Image.open("fashion-mnist-10k.png") as sheet:
        pixels = np.asarray(sheet)
    loaded = datasets.load("fashion-mnist-10k", tmp_path)
    assert loaded.labels is not None
    assert np.array_equal(pixels[:, :28], loaded.images[loaded.labels == 8][0, 0])
    assert pixels[:, 90:].min() == 255
    with pytest.raises(DatasetError, match="data set fashion-mnist-10k has no class 'hat'; its classes: t-shirt/top, trouser"):
        run("sheet", "fashion-mnist-10k", "--label", "hat")
    with pytest.raises(DatasetError, match="--num-images 257 is not allowed: give 1 to 256"):
        run("sheet", "fashion-mnist-10k", "--num-images", 257)


def test_large_images_are_reduced_on_a_sheet(tmp_path: Path) -> None:
    run("add", "own", pictures(tmp_path / "p"), "--size", 200)
    run("sheet", "own", "-o", tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (8 * 130 - 2, 128)


def test_a_set_is_removed_unless_it_is_built_in_or_used(tmp_path: Path, state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("add", "own", pictures(tmp_path / "p"))
    folder = state / "jobs" / "job"
    runs.create(folder, TrainConfig(dataset="own"), "job")
    with pytest.raises(UserError, match="data set 'own' is used by job: cancel those jobs first"):
        run("remove", "own")
    runs.write_status(folder, runs.read_status(folder).model_copy(update={"state": "cancelled"}))
    run("remove", "own")
    assert capsys.readouterr().out.endswith("removed own\n")
    assert [path.name for path in (state / "datasets").iterdir()] == [".staging"]
    with pytest.raises(UserError, match="there is no data set 'own'"):
        run("remove", "own")
    with pytest.raises(UserError, match="is built in and cannot be removed"):
        run("remove", "fashion-mnist-10k")
