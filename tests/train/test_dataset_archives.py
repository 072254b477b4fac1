"""ZIP archives as data sets: what is in them is read as a folder is, and what is hostile in them is refused in words."""

import io
import stat
import struct
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from training import datasets
from training.dataset_archives import MAX_ENTRIES, Archive, ArchiveError
from training.dataset_kinds import read_as
from training.dataset_trees import Folder
from training.datasets import Dataset, DatasetError, EmptyDatasetError
from training.files.imports import DatasetKind

ALLOWED = "a whole PNG, JPEG, WebP, BMP or GIF of at most 16,777,216 pixels is allowed"


def png(value: int = 0, size: tuple[int, int] = (8, 8)) -> bytes:
    file = io.BytesIO()
    Image.new("L", size, value).save(file, "PNG")
    return file.getvalue()


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def register(place: Path, kind: DatasetKind = "auto", **options: object) -> Dataset:
    pictures = read_as(place, kind, **{"size": 8, **options})  # type: ignore[arg-type]
    datasets.write("own", place.parent / "sets", pictures.about, pictures.batches)
    return datasets.load("own", place.parent / "sets")


# --- what is in them ----------------------------------------------------------------------------------------------------------


def test_an_archive_gives_the_set_of_the_folder_that_it_was_made_of(tmp_path: Path) -> None:
    folder = tmp_path / "pets"
    for name in ("dog/1.png", "cat/2.png", "cat/1.png", "notes.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"no picture" if name.endswith("txt") else png(len(name), (12, 20)))
    path = zipped(tmp_path / "pets.zip", {path.relative_to(tmp_path).as_posix(): path.read_bytes() for path in folder.rglob("*.*")})
    read = {"folder": read_as(folder, "auto"), "archive": read_as(path, "auto")}
    cards = [datasets.write(name, tmp_path / "sets", each.about, each.batches) for name, each in read.items()]
    assert cards[0].content_sha256 == cards[1].content_sha256
    assert [card.source for card in cards] == ["the folder pets", "the archive pets.zip"]
    same = ("class_names", "class_counts", "skipped", "original_sizes", "num_duplicates")
    assert [getattr(cards[0], field) for field in same] == [getattr(cards[1], field) for field in same]
    assert (cards[0].class_names, cards[0].class_counts, cards[0].num_duplicates) == (("cat", "dog"), (2, 1), 2)
    assert Archive(path).files == Folder(folder).files, "the one folder at the top is the tree"


def test_junk_of_systems_is_left_out_and_counted(tmp_path: Path) -> None:
    junk = {"pets/.DS_Store": b"x", "__MACOSX/pets/._1.png": b"x", "__MACOSX/pets/._2.png": b"x", "pets/.git/HEAD": b"x", "Thumbs.db": b"x"}
    loaded = register(zipped(tmp_path / "p.zip", {"pets/1.png": png(), **junk}))
    assert loaded.card.skipped == (
        "Thumbs.db: it is left behind by a system",
        "__MACOSX: it is left behind by a system, a folder of 2 files",
        "pets/.DS_Store: it is hidden",
        "pets/.git: it is hidden, a folder of 1 file",
    )


@pytest.mark.parametrize("name", [".", "./.", "\0"])
def test_an_entry_without_a_name_is_refused(tmp_path: Path, name: str) -> None:
    path = zipped(tmp_path / "p.zip", {"pets/1.png": png(1), "./": b""})
    Archive(path)
    with zipfile.ZipFile(path, "a") as archive:
        entry = zipfile.ZipInfo("x" * len(name))
        entry.filename = name
        archive.writestr(entry, b"x")
    with pytest.raises(ArchiveError, match=r"has a path without a name: make it again of a folder"):
        Archive(path)


def test_files_beside_the_folder_of_all_pictures_are_left_out(tmp_path: Path) -> None:
    loaded = register(zipped(tmp_path / "p.zip", {"pets/a/1.png": png(1), "pets/b/1.png": png(2), "LICENSE": b"CC0"}))
    assert loaded.card.class_names == ("a", "b")
    assert loaded.card.skipped == ("LICENSE: it lies beside the folder pets, which holds all the pictures",)


def test_source_and_target_are_pairs_unless_something_else_is_asked_for(tmp_path: Path) -> None:
    path = zipped(tmp_path / "p.zip", {f"p/{side}/{number}.png": png(number) for side in ("source", "target") for number in (1, 2)})
    assert register(path).card.source_shape == (1, 8, 8)
    (tmp_path / "again").mkdir()
    assert register(path.rename(tmp_path / "again" / "p.zip"), "images").card.class_names == ("source", "target")
    with pytest.raises(DatasetError, match="swap and source_channels are for pairs"):
        read_as(tmp_path / "again" / "p.zip", "images", swap=True)


def test_a_photograph_is_turned_upright_and_nothing_of_its_metadata_is_kept(tmp_path: Path) -> None:
    photograph, exif, file = Image.new("L", (16, 8), 0), Image.Exif(), io.BytesIO()
    photograph.paste(255, (0, 0, 8, 8))  # the left half, which is the upper one once it is turned
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.Make] = "a camera of mine"
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSDateStamp] = "2026:01:02"
    photograph.save(file, "PNG", exif=exif)
    assert b"2026:01:02" in file.getvalue()
    loaded = register(zipped(tmp_path / "p.zip", {"1.png": file.getvalue()}), "tiles", channels=1)
    assert loaded.images.mean(axis=(1, 2, 3)).tolist() == [255, 0]
    sizes = loaded.card.original_sizes
    assert sizes is not None
    assert sizes.largest == (8, 16)
    kept = b"".join(path.read_bytes() for path in (tmp_path / "sets" / "own").iterdir())
    assert not any(word in kept for word in (b"2026:01:02", b"camera", b"Exif", b"GPS"))


def test_one_damaged_file_among_many_is_left_out_with_its_sentence(tmp_path: Path) -> None:
    path = zipped(tmp_path / "p.zip", {f"{number}.png": png(number) for number in range(20)})
    data = bytearray(path.read_bytes())
    data[data.index(b"7.png") + 12] ^= 0xFF
    path.write_bytes(data)
    loaded = register(path)
    assert loaded.card.num_images == 19
    assert loaded.card.skipped[0].startswith("7.png: it is damaged in the archive (")


def test_a_nested_archive_and_an_empty_file_are_no_pictures(tmp_path: Path) -> None:
    inner = zipped(tmp_path / "inner.zip", {"1.png": png()}).read_bytes()
    loaded = register(zipped(tmp_path / "p.zip", {"1.png": png(), "inner.zip": inner, "2.png": b""}))
    assert loaded.card.skipped == tuple(f"{name}: this is no picture that can be read; {ALLOWED}" for name in ("2.png", "inner.zip"))


def test_case_twins_are_two_pictures_and_backslashes_are_slashes(tmp_path: Path) -> None:
    loaded = register(zipped(tmp_path / "p.zip", {"a\\1.png": png(1), "a\\1.PNG": png(2), "b\\1.png": png(3)}))
    assert (loaded.card.class_names, loaded.card.class_counts) == (("a", "b"), (2, 1))


def test_names_that_would_break_a_line_are_shown_on_one(tmp_path: Path) -> None:
    loaded = register(zipped(tmp_path / "p.zip", {"1.png": png(), "a\n\x1b[31mb.txt": b"x"}))
    assert loaded.card.skipped[0].startswith("a\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}[31mb.txt: ")


def test_a_card_names_the_first_of_very_many_left_out_files_and_counts_all(tmp_path: Path) -> None:
    card = register(zipped(tmp_path / "p.zip", {"1.png": png(), **{f"{number}.txt": b"" for number in range(1200)}})).card
    assert (len(card.skipped), card.num_skipped, card.num_images) == (1000, 1200, 1)


# --- what is not allowed ------------------------------------------------------------------------------------------------------


def entry(name: str, *, mode: int = 0o644, data: bytes = b"", method: int = zipfile.ZIP_STORED) -> Callable[[zipfile.ZipFile], None]:
    def write(archive: zipfile.ZipFile) -> None:
        info = zipfile.ZipInfo(name)
        info.external_attr, info.compress_type = (mode | (0 if stat.S_IFMT(mode) else stat.S_IFREG)) << 16, method
        archive.writestr(info, data)

    return write


def twice(archive: zipfile.ZipFile) -> None:
    archive.writestr("./1.png", png(1))
    archive.writestr("1.png", png(2))


REFUSED = {
    "traversal": (entry("../../evil.png"), "has a path that leads out of the archive"),
    "traversal by backslashes": (entry("..\\evil.png"), "has a path that leads out of the archive"),
    "absolute": (entry("/etc/passwd"), "has an absolute path"),
    "absolute on Windows": (entry("C:\\evil.png"), "has an absolute path"),
    "long name": (entry("a" * 1001), "has a name of 1,001 characters; 1,000 are allowed"),
    "link": (entry("link.png", mode=stat.S_IFLNK | 0o777, data=b"/etc/passwd"), "is a link"),
    "device": (entry("null.png", mode=stat.S_IFCHR | 0o666), "is neither a file nor a folder"),
    "bomb": (entry("bomb.png", data=bytes(2**22), method=zipfile.ZIP_DEFLATED), "to 4,194,304; a ratio of 200 is allowed"),
    "other method": (entry("1.png", data=png(), method=zipfile.ZIP_LZMA), "is packed by method 14, which is not read"),
    "twice": (twice, "is there twice"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_hostile_is_refused_with_the_entry_and_the_reason(tmp_path: Path, kind: str) -> None:
    write, reason = REFUSED[kind]
    before = sorted(tmp_path.parent.iterdir())
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
        archive.writestr("good.png", png())
        write(archive)
    with pytest.raises(ArchiveError) as error:
        register(tmp_path / "p.zip")
    assert str(error.value).startswith("p.zip is refused, because its entry '")
    assert reason in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["p.zip"]
    assert sorted(tmp_path.parent.iterdir()) == before


def central(archive: bytes) -> int:
    return archive.index(b"PK\x01\x02")


def patched(path: Path, offset: int, form: str, *values: int) -> Path:
    """With other values in the first entry of the central directory."""
    data = bytearray(path.read_bytes())
    struct.pack_into(form, data, central(data) + offset, *values)
    path.write_bytes(data)
    return path


def test_an_encrypted_entry_is_refused(tmp_path: Path) -> None:
    path = patched(zipped(tmp_path / "p.zip", {"1.png": png()}), 8, "<H", 1)
    with pytest.raises(ArchiveError, match=r"its entry '1.png' is encrypted: make it again without a password"):
        register(path)


@pytest.mark.parametrize(("size", "reason"), [(10, r"it is damaged in the archive"), (5000, "it has another size than it says")])
def test_a_file_that_lies_about_its_size_is_left_out(tmp_path: Path, size: int, reason: str) -> None:
    path = patched(zipped(tmp_path / "p.zip", {"1.png": png(), "2.png": png()}), 24, "<I", size)
    skipped = register(path).card.skipped
    assert len(skipped) == 1
    assert skipped[0].startswith("1.png: ")
    assert reason in skipped[0]


def test_entries_that_share_their_bytes_are_refused(tmp_path: Path) -> None:
    data = zipped(tmp_path / "p.zip", {"1.png": png()}).read_bytes()
    start, end = central(data), data.index(b"PK\x05\x06")
    twin = data[start:end].replace(b"1.png", b"2.png")
    tail = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 2, 2, 2 * (end - start), start, 0)
    (tmp_path / "p.zip").write_bytes(data[:end] + twin + tail)
    with pytest.raises(ArchiveError, match="overlaps with what lies behind it"):
        register(tmp_path / "p.zip")


def test_too_many_entries_are_refused(tmp_path: Path) -> None:
    one = struct.pack("<4sHHHHHHIIIHHHHHII", b"PK\x01\x02", 20, 20, 0, 0, 0, 33, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"a"
    num = MAX_ENTRIES + 1
    tail = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, num % 65536, num % 65536, num * len(one), 0, 0)
    (tmp_path / "p.zip").write_bytes(one * num + tail)
    with pytest.raises(ArchiveError, match=r"p.zip has 200,001 entries; 200,000 are allowed: make several archives"):
        register(tmp_path / "p.zip")


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path / "p.zip", {f"{number}.png": b"" for number in range(3)})
    data = path.read_bytes()
    path.write_bytes(data.replace(data[central(data) + 20 : central(data) + 28], struct.pack("<II", 2, 0xFFFFFFF0)))
    with pytest.raises(ArchiveError, match=r"p.zip unpacks to 12,884,901,840 bytes; 8,589,934,592 are allowed"):
        register(path)


@pytest.mark.parametrize("cut", [0, 1, 30, 100, -1, -10, -60])
def test_what_is_no_archive_or_cut_off_is_refused(tmp_path: Path, cut: int) -> None:
    data = zipped(tmp_path / "p.zip", {"1.png": png(), "2.png": png()}).read_bytes()
    (tmp_path / "p.zip").write_bytes(data[:cut])
    with pytest.raises(ArchiveError, match=r"p.zip is no ZIP archive, or is damaged or cut off"):
        register(tmp_path / "p.zip")


def test_any_damage_gives_a_set_or_a_sentence(tmp_path: Path) -> None:
    data = zipped(tmp_path / "p.zip", {"a/1.png": png(1), "b/2.png": png(2)}).read_bytes()
    random = np.random.default_rng(0)
    for number in range(200):
        mutant = bytearray(data)
        for place in random.integers(0, len(data), 3):
            mutant[place] = random.integers(0, 256)
        path = tmp_path / f"{number}.zip"
        path.write_bytes(mutant)
        with suppress(DatasetError):
            pictures = read_as(path, "auto", size=8)
            datasets.write(f"set-{number}", tmp_path / "sets", pictures.about, pictures.batches)


def test_an_archive_without_pictures_makes_no_set(tmp_path: Path) -> None:
    with pytest.raises(EmptyDatasetError, match=r"all 1 files were left out, the first because a.txt: this is no picture"):
        register(zipped(tmp_path / "p.zip", {"a.txt": b"x"}))
    with pytest.raises(EmptyDatasetError, match="there is no file in it"):
        register(zipped(tmp_path / "empty.zip", {}))
