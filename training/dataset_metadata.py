"""Labels and captions of pictures from a table beside them: `metadata.jsonl` or `metadata.csv`, as Hugging Face's imagefolder has them.

A row is `file_name`, the picture's path from where the table lies, with `label`, a class's name or number, or `text`, a caption, or both.
What goes wrong with the table as a whole is refused; what goes wrong with a row is left out, with a sentence:

- a row that names no file, or has no label where others have one;
- where the table has labels, a picture that has no row. Where it has captions alone, such a picture stays, without one.
"""

import csv
import io
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath, PurePosixPath

from training.dataset_trees import Tree, text
from training.datasets import DatasetError

TABLES = (PurePosixPath("metadata.jsonl"), PurePosixPath("metadata.csv"))
FILE, LABEL, CAPTION = "file_name", "label", "text"
MAX_CLASSES = 10_000
MAX_NAME = 1000  # characters of a label, and of a column's name
_NAMED = 20  # columns in a note
_MAX_BYTES = 64 * 2**20

Row = Mapping[str, object]


@dataclass(frozen=True)
class Metadata:
    """What a table says of the files: their labels as text (None where it has no labels), and their captions (likewise)."""

    table: str
    labels: Mapping[PurePath, str] | None
    captions: Mapping[PurePath, str] | None
    left_out: tuple[str, ...]
    notes: tuple[str, ...]


def metadata_of(tree: Tree) -> Metadata | None:
    """What the table in a tree says; None where there is no table.

    Raises:
        DatasetError: it cannot be read as one; the message says where.
    """
    found = [table for table in TABLES if table in map(_posix, tree.files)]
    if len(found) > 1:
        raise DatasetError(f"{tree.path.name} holds both {found[0]} and {found[1]}: keep one of them")
    if not found:
        return None
    table = found[0].name
    rows = list(_rows(tree, PurePath(found[0])))
    columns = dict.fromkeys(column for _, row in rows for column in row)
    if not {LABEL, CAPTION} & columns.keys():
        raise DatasetError(f"{table} has neither a column {LABEL} nor {CAPTION}: give one of them, or leave the table out")
    if long := next((column for column in columns if len(column) > MAX_NAME), None):
        raise DatasetError(f"{table} has a column of {len(long):,} characters, {ascii(long)[:80]}; {MAX_NAME:,} are allowed: rename it")
    unread = [text(column) for column in columns if column not in (FILE, LABEL, CAPTION)]
    named = f"{', '.join(unread[:_NAMED])}{f' and {len(unread) - _NAMED:,} more' if len(unread) > _NAMED else ''}"
    notes = (f"of {table}, nothing is read but {FILE}, {LABEL} and {CAPTION}; it has {named} too",) if unread else ()
    files = [file for file in tree.files if _posix(file) != found[0]]
    return _understood(table, rows, files, set(columns), notes)


def _posix(file: PurePath) -> PurePosixPath:
    return PurePosixPath(*file.parts)


def _understood(
    table: str, rows: Sequence[tuple[int, Row]], files: Sequence[PurePath], columns: set[str], notes: tuple[str, ...]
) -> Metadata:
    by_path = {_posix(file): file for file in files}
    seen: dict[PurePath, int] = {}
    labels: dict[PurePath, str] = {}
    captions: dict[PurePath, str] = {}
    left_out = []
    for line, row in rows:
        file = by_path.get(PurePosixPath(str(row[FILE])))
        if file is None:
            left_out.append(f"{table}, line {line}: there is no file {text(str(row[FILE]))[:200]}")
            continue
        if file in seen:
            raise DatasetError(f"{table} names {text(file)} in line {seen[file]} and again in line {line}: keep one of the two rows")
        seen[file] = line
        if (label := row.get(LABEL)) not in (None, ""):
            labels[file] = _label(table, line, label)
        if (caption := row.get(CAPTION)) not in (None, ""):
            if not isinstance(caption, str):
                raise DatasetError(f"{table}, line {line}: {CAPTION} is {ascii(caption)[:80]}; a caption in words is allowed")
            captions[file] = caption
    return Metadata(table, labels if LABEL in columns else None, captions if CAPTION in columns else None, tuple(left_out), notes)


def _label(table: str, line: int, label: object) -> str:
    if isinstance(label, bool) or not isinstance(label, str | int):
        raise DatasetError(f"{table}, line {line}: {LABEL} is {ascii(label)[:80]}; a class's name or a whole number is allowed")
    if len(str(label)) > MAX_NAME:
        raise DatasetError(f"{table}, line {line}: {LABEL} has {len(str(label)):,} characters; {MAX_NAME:,} are allowed: shorten it")
    return text(str(label))


def class_names(labels: Mapping[PurePath, str]) -> list[str]:
    """In the order of their numbers where all are numbers, else of the alphabet.

    Raises:
        DatasetError: more than MAX_CLASSES.
    """
    names = sorted(set(labels.values()))
    if len(names) > MAX_CLASSES:
        raise DatasetError(f"there are {len(names):,} classes; {MAX_CLASSES:,} are allowed")
    return sorted(names, key=int) if all(name.isdecimal() and len(name) < 19 for name in names) else names


# --- the two forms ------------------------------------------------------------------------------------------------------------


def _rows(tree: Tree, table: PurePath) -> Iterator[tuple[int, Row]]:
    """Each row with the number of its line, and in it a file's name."""
    try:
        with tree.open(table) as file:
            content = file.read(_MAX_BYTES + 1)
        if len(content) > _MAX_BYTES:
            raise DatasetError(f"{table} has more than the {_MAX_BYTES:,} bytes that are allowed")
        decoded = content.decode("utf-8-sig")
    except (OSError, zipfile.BadZipFile) as error:
        raise DatasetError(f"{table} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"{table} is not written in UTF-8: save it so") from error
    for line, row in _from_json(table, decoded) if table.suffix == ".jsonl" else _from_csv(table, decoded):
        if not isinstance(row.get(FILE), str) or not row[FILE]:
            raise DatasetError(f"{table}, line {line}: there is no {FILE}; each row names its picture by it")
        yield line, row


def _from_json(table: PurePath, decoded: str) -> Iterator[tuple[int, Row]]:
    for number, line in enumerate(decoded.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DatasetError(f"{table}, line {number} is no JSON: {error}") from error
        if not isinstance(row, dict):
            raise DatasetError(f'{table}, line {number} is no JSON object, as {{"{FILE}": "1.png", "{LABEL}": "cat"}} is one')
        yield number, row


def _from_csv(table: PurePath, decoded: str) -> Iterator[tuple[int, Row]]:
    reader = csv.DictReader(io.StringIO(decoded, newline=""), strict=True)
    try:
        for row in reader:
            if None in row or None in row.values():
                raise DatasetError(f"{table}, line {reader.line_num} has another number of fields than the first line has names")
            yield reader.line_num, row
    except csv.Error as error:
        raise DatasetError(f"{table}, line {reader.reader.line_num} is no CSV: {error}") from error
