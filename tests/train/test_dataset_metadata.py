"""Labels and captions from a table beside the pictures."""

import io
import json
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from training import datasets
from training.contract import DatasetCard
from training.dataset_kinds import read_as
from training.datasets import DamagedDatasetError, DatasetError


def made(tmp_path: Path, files: dict[str, str], pictures: tuple[str, ...] = ("1.png", "2.png", "more/3.png")) -> DatasetCard:
    path = tmp_path / "pets.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for index, name in enumerate(pictures):
            file = io.BytesIO()
            Image.new("L", (8, 8), index).save(file, "PNG")
            archive.writestr(name, file.getvalue())
        for name, content in files.items():
            archive.writestr(name, content)
    read = read_as(path, "auto", size=8)
    return datasets.write("own", tmp_path / "sets", read.about, read.batches)


def lines(*rows: dict[str, object]) -> str:
    return "\n".join(json.dumps(row) for row in rows)


def row(file: str, **values: object) -> dict[str, object]:
    return {"file_name": file, **values}


LABELS = lines(row("more/3.png", label="dog"), row("1.png", label="cat"), row("2.png", label="dog"))


@pytest.mark.parametrize(
    "table", [{"metadata.jsonl": LABELS}, {"metadata.csv": "\ufefflabel,file_name\r\ndog,./more/3.png\r\ncat,1.png\r\ndog,2.png\r\n"}]
)
def test_labels_are_the_tables_and_not_the_folders(tmp_path: Path, table: dict[str, str]) -> None:
    card = made(tmp_path, table)
    assert (card.class_names, card.class_counts, card.skipped, card.notes) == (("cat", "dog"), (1, 2), (), ())
    labels = datasets.load("own", tmp_path / "sets").labels
    assert labels is not None
    assert labels.tolist() == [0, 1, 1]


def test_numbers_are_classes_in_their_order(tmp_path: Path) -> None:
    assert made(
        tmp_path, {"metadata.jsonl": lines(row("1.png", label=10), row("2.png", label=9), row("more/3.png", label=10))}
    ).class_names == (
        "9",
        "10",
    )


def test_captions_are_kept_with_the_set_and_are_part_of_its_content(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    plain = made(tmp_path / "plain", {})
    assert plain.num_captions is None
    card = made(tmp_path, {"metadata.jsonl": lines(row("2.png", text="Katze, müde"), row("1.png", text=""))})
    folder = tmp_path / "sets" / "own"
    assert [json.loads(line) for line in (folder / "captions.jsonl").read_text().splitlines()] == [None, "Katze, müde", None]
    assert (card.num_captions, card.num_images, card.skipped) == (1, 3, ())
    assert card.content_sha256 != plain.content_sha256
    (folder / "captions.jsonl").write_text("null\n" * 3)
    with pytest.raises(DamagedDatasetError, match=r"captions.jsonl has 15 bytes; its card says"):
        datasets.load("own", tmp_path / "sets")


def test_rows_and_pictures_that_do_not_meet_are_left_out_with_a_sentence(tmp_path: Path) -> None:
    table = lines(row("1.png", label="cat"), row("gone.png", label="dog"), row("2.png", label="dog"), row("more/3.png", label=""))
    card = made(tmp_path, {"metadata.jsonl": table, "notes.txt": ""}, ("1.png", "2.png", "more/3.png", "4.png"))
    assert card.class_counts == (1, 1)
    assert card.skipped[:3] == (
        "metadata.jsonl, line 2: there is no file gone.png",
        "4.png: metadata.jsonl gives no label for it",
        "more/3.png: metadata.jsonl gives no label for it",
    )
    assert card.skipped[3].startswith("notes.txt: this is no picture")


def test_halves_of_letters_are_replaced_wherever_they_stand(tmp_path: Path) -> None:
    half, shown = "\ud800", "\N{REPLACEMENT CHARACTER}"
    rows = (
        row("1.png", label=half, text=half, **{half: 1}),
        row("2.png", label="cat"),
        row("more/3.png", label="cat"),
        row(half, label="cat"),
    )
    card = made(tmp_path, {"metadata.jsonl": lines(*rows)})
    assert card.class_names == ("cat", shown)
    assert card.skipped == (f"metadata.jsonl, line 4: there is no file {shown}",)
    assert card.notes == (f"of metadata.jsonl, nothing is read but file_name, label and text; it has {shown} too",)
    assert datasets.load("own", tmp_path / "sets").card == card


def test_of_many_columns_that_are_not_read_some_are_named(tmp_path: Path) -> None:
    columns = {f"c{index}": 1 for index in range(25)}
    [note, _] = made(
        tmp_path, {"metadata.jsonl": lines(*(row(name, label="a", **columns) for name in ("1.png", "2.png", "more/3.png")))}
    ).notes
    assert note.endswith("c18, c19 and 5 more too")


def test_what_is_not_read_of_a_table_is_noted_on_the_card(tmp_path: Path) -> None:
    card = made(tmp_path, {"metadata.csv": "file_name,label,box\n1.png,cat,1\n2.png,cat,2\nmore/3.png,cat,3\n"})
    assert card.class_names is None
    assert card.notes == (
        "of metadata.csv, nothing is read but file_name, label and text; it has box too",
        "the set has no classes, because metadata.csv gives each picture the label cat",
    )


@pytest.mark.parametrize(
    ("tables", "sentence"),
    [
        ({"metadata.jsonl": LABELS, "metadata.csv": "file_name,label\n"}, "holds both metadata.jsonl and metadata.csv: keep one of them"),
        ({"metadata.jsonl": "{"}, "metadata.jsonl, line 1 is no JSON: "),
        ({"metadata.jsonl": "[" * 100_000}, "metadata.jsonl, line 1 is no JSON: "),
        ({"metadata.jsonl": '"1.png"'}, "metadata.jsonl, line 1 is no JSON object"),
        ({"metadata.jsonl": '\n{"label": "cat"}'}, "metadata.jsonl, line 2: there is no file_name"),
        ({"metadata.jsonl": lines(row("1.png"))}, "metadata.jsonl has neither a column label nor text"),
        ({"metadata.jsonl": lines(row("1.png", label=True))}, "metadata.jsonl, line 1: label is True; a class's name or a whole number"),
        ({"metadata.jsonl": lines(row("1.png", label="a" * 1001))}, "line 1: label has 1,001 characters; 1,000 are allowed: shorten it"),
        ({"metadata.jsonl": lines(row("1.png", label="a", **{"b" * 1001: 1}))}, "has a column of 1,001 characters, 'bbb"),
        ({"metadata.jsonl": lines(row("1.png", text=1))}, "metadata.jsonl, line 1: text is 1; a caption in words is allowed"),
        ({"metadata.jsonl": lines(row("1.png", label="a"), row("./1.png", label="b"))}, "names 1.png in line 1 and again in line 2"),
        ({"metadata.csv": "file_name,label\n1.png\n"}, "metadata.csv, line 2 has another number of fields"),
        ({"metadata.csv": "file_name,label\n1.png,cat,dog\n"}, "metadata.csv, line 2 has another number of fields"),
        ({"metadata.csv": 'file_name,label\n1.png,"cat\n'}, "metadata.csv, line 2 is no CSV: "),
        ({"metadata.csv": ""}, "metadata.csv has neither a column label nor text"),
    ],
)
def test_a_table_that_cannot_be_understood_is_refused_with_its_line(tmp_path: Path, tables: dict[str, str], sentence: str) -> None:
    with pytest.raises(DatasetError) as error:
        made(tmp_path, tables)
    assert sentence in str(error.value)


def test_a_table_is_written_in_utf_8(tmp_path: Path) -> None:
    for name in ("1.png", "2.png"):
        Image.new("L", (8, 8)).save(tmp_path / name)
    (tmp_path / "metadata.csv").write_bytes("file_name,label\n1.png,Bär\n".encode("latin-1"))
    with pytest.raises(DatasetError, match=r"metadata.csv is not written in UTF-8: save it so"):
        read_as(tmp_path, "auto")
