"""The process that makes a data set of an archive that was sent, and what it leaves however it ends."""

import io
import json
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import pytest
from PIL import Image

from training import datasets
from training.contract import now
from training.dataset_worker import work
from training.files import imports
from training.files.directories import STAGING, hide
from training.files.imports import DatasetOptions, ImportRequest, ImportStatus
from training.files.locks import LockedError, hold

SECONDS = 60


def png(value: int = 0, size: tuple[int, int] = (8, 8), mode: str = "L") -> bytes:
    file = io.BytesIO()
    Image.new(mode, size, value).save(file, "PNG")
    return file.getvalue()


class Imports:
    """A folder of imports, and one of data sets."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.datasets = folder / "imports", folder / "datasets"

    def create(self, files: dict[str, bytes], **options: object) -> Path:
        """An import, as a server left it that acknowledged the archive and died."""
        folder = self.folder / "pets"
        folder.mkdir(parents=True)
        with zipfile.ZipFile(imports.archive(folder), "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
        digest = sha256(imports.archive(folder).read_bytes()).hexdigest()
        options = {"name": "pets", "size": 8, **options}
        request = ImportRequest(options=DatasetOptions.model_validate(options), archive_sha256=digest, key=None, created_at=now())
        imports.write_request(folder, request)
        imports.write_status(folder, ImportStatus())
        return folder


@pytest.fixture
def made(tmp_path: Path) -> Imports:
    return Imports(tmp_path)


def test_an_archive_becomes_a_set_and_is_taken_away(made: Imports) -> None:
    folder = made.create({"a/1.png": png(1), "b/1.png": png(2)}, licence="CC0")
    assert work(folder, made.datasets) == 0
    status, card = imports.read_status(folder), datasets.card("pets", made.datasets)
    assert (status.state, status.num_files) == ("ready", 2)
    assert not imports.archive(folder).exists()
    assert (card.class_names, card.licence) == (("a", "b"), "CC0")
    assert card.source == f"an archive that was sent, sha256 {imports.read_request(folder).archive_sha256}"
    assert work(folder, made.datasets) == 0, "there is nothing left to do"


def test_what_cannot_be_made_is_said_and_leaves_nothing(made: Imports) -> None:
    folder = made.create({"../1.png": png()})
    assert work(folder, made.datasets) == 1
    status = imports.read_status(folder)
    assert status.state == "failed"
    assert status.message.startswith("pets.zip is refused, because its entry '../1.png' has a path that leads out")
    assert sorted(path.name for path in folder.iterdir()) == ["lock", "request.json", "status.json"]
    assert list(made.datasets.glob("*")) == []


def test_a_worker_that_follows_a_dead_one_begins_anew(made: Imports) -> None:
    folder = made.create({"1.png": png()})
    (folder / STAGING / "half").mkdir(parents=True)
    (folder / STAGING / "half" / "images.npy").write_bytes(bytes(1000))
    assert work(folder, made.datasets) == 0
    assert list((folder / STAGING).iterdir()) == []


def test_a_worker_that_follows_one_that_died_with_the_set_made_says_that_it_is(made: Imports) -> None:
    folder = made.create({"1.png": png()})
    archive = imports.archive(folder).read_bytes()
    work(folder, made.datasets)
    before = (made.datasets / "pets" / "card.json").read_bytes()
    imports.archive(folder).write_bytes(archive)
    imports.write_status(folder, ImportStatus(attempts=1))
    assert work(folder, made.datasets) == 0
    assert imports.read_status(folder).state == "ready"
    assert (made.datasets / "pets" / "card.json").read_bytes() == before


def test_a_set_that_somebody_else_made_by_the_name_meanwhile_stays(made: Imports) -> None:
    work(made.create({"1.png": png(1)}), made.datasets)
    hide(made.folder / "pets")
    folder = made.create({"1.png": png(2)})
    assert work(folder, made.datasets) == 1
    assert imports.read_status(folder).message == "data set 'pets' is registered already and sets never change: choose another name"
    assert datasets.load("pets", made.datasets).images.max() == 1


def test_two_workers_do_not_work_in_one_directory(made: Imports) -> None:
    folder = made.create({"1.png": png()})
    with hold(folder), pytest.raises(LockedError):
        work(folder, made.datasets)


@contextmanager
def started(folder: Path, made: Imports, *, memory_kilobytes: int | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A worker in a process of its own, which has ended, with `said`, at the end of the block."""
    command = [sys.executable, "-m", "training.dataset_worker", str(folder), "--datasets", str(made.datasets)]
    if memory_kilobytes is not None:
        command = ["/bin/bash", "-c", f'ulimit -v {memory_kilobytes}; exec "$@"', "bash", *command]
    with (made.folder / "said").open("wb") as said, subprocess.Popen(command, stderr=said) as process:
        yield process
        process.wait(SECONDS)


def test_a_worker_whose_import_is_taken_away_makes_no_set_and_harms_no_other_import(made: Imports) -> None:
    large = png(size=(1500, 1500))  # the worker is at them for a second at least, however seldom this process is let on
    folder = made.create({f"{number}.png": large for number in range(120)})
    with started(folder, made) as process:
        until = time.monotonic() + SECONDS
        while imports.read_status(folder).num_files is None:
            assert time.monotonic() < until
            time.sleep(0.01)
        hide(folder)
        again = made.create({"1.png": png()})
    assert process.returncode == 1
    assert list(made.datasets.glob("*")) == []
    assert imports.read_status(again) == ImportStatus()
    assert imports.archive(again).exists()


@pytest.mark.skipif(sys.platform != "linux", reason="memory is bounded on Linux")
def test_a_picture_that_takes_more_memory_than_there_may_be_fails_with_a_sentence(made: Imports) -> None:
    folder = made.create({"large.png": png(size=(4096, 4096), mode="I;16")})
    with started(folder, made, memory_kilobytes=300_000) as process:
        pass
    assert process.returncode == 1, (made.folder / "said").read_text()
    assert imports.read_status(folder).message == "it takes more memory than an import may have; send fewer or smaller pictures"


def test_the_documents_of_an_import_are_those_that_stand_at_their_places(made: Imports) -> None:
    folder = made.create({}, kind="pairs", swap=True)
    request = json.loads((folder / "request.json").read_bytes())
    assert request["options"] == {
        "name": "pets",
        "size": 8,
        "channels": None,
        "kind": "pairs",
        "swap": True,
        "licence": "not stated",
    }
