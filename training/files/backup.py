"""One file of all that must outlive a disk, made while everything works: the first repository, data sets, jobs, runs, what is trusted.

Versions, data sets and checkpoints never change, so their files are opened together and copied at leisure; documents are replaced whole.
What points at something is read before what it points at or after, so that nothing points at what is not there:
jobs, then the versions that they name; versions, then the aliases that name them, until none is missing; digests last.
The index of jobs is left out: it is made anew from their directories.
"""

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from pydantic import ValidationError

from training.contract import Document, FileSpec, Manifest, Sha256, is_name, now
from training.files import digests, numbers, runs, versions
from training.files.directories import STAGING, commit, make_folder, rename, sha256_of, staging
from training.files.locks import LOCK

MODELS, STATE, INDEX = "models", "state", "backup.json"
PLAIN = ("datasets", "weights")  # folders whose entries never change, but come and go
RUNS = ("jobs", "runs")  # folders of run directories
DOCUMENTS = ("serving.json",)
ATTEMPTS = 100  # at a run's newest checkpoint, which goes when two newer ones are there
CHUNK_BYTES = 2**20


class BackupError(Exception):
    """It cannot be made or restored; the message says why."""


class Index(Document):
    """`backup.json`, the last entry: the SHA-256 of every other."""

    schema_version: int = 1
    made_at: str
    files: dict[str, Sha256]


@dataclass
class Report:
    """What is in a backup, and what is worth a word."""

    num_models: int = 0
    num_versions: int = 0
    num_runs: int = 0
    num_datasets: int = 0
    remarks: list[str] = field(default_factory=list)  # sentences: what is damaged, and what was left out


# --- making -------------------------------------------------------------------------------------------------------------------


def back_up(file: Path, repository: Path, state: Path) -> Report:
    """Write a new file; it is there when it is whole.

    Raises:
        BackupError: the file is there already, or a run did not hold still.
        OSError: something cannot be read or written.
    """
    if file.exists():
        raise BackupError(f"{file} is there already: choose another name, or move it away")
    partial = file.with_name(f".{file.name}.partial")
    try:
        with partial.open("wb") as written:
            with tarfile.open(fileobj=written, mode="w") as tar:
                report = _Backup(tar).of(repository, state)
            written.flush()
            os.fsync(written.fileno())
        rename(partial, file)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return report


class _Backup:
    """A tar on its way."""

    def __init__(self, tar: tarfile.TarFile) -> None:
        self._tar = tar
        self._digests: dict[str, str] = {}
        self._report = Report()

    def of(self, repository: Path, state: Path) -> Report:
        for kind in RUNS:
            for folder in _entries(state / kind):
                self._report.num_runs += self._run(folder, f"{STATE}/{kind}/{folder.name}")
        for kind in PLAIN:
            for entry in _entries(state / kind):
                self._report.num_datasets += self._unchanging(entry, f"{STATE}/{kind}/{entry.name}") and kind == "datasets"
        for name in DOCUMENTS:
            self._document(state / name, f"{STATE}/{name}")
        for folder in _entries(repository):
            if folder.is_dir() and not folder.is_symlink() and is_name(folder.name):
                self._model(repository, folder)
        for entry in _entries(state / digests.FOLDER):
            self._document(entry, f"{STATE}/{digests.FOLDER}/{entry.name}")
        known = {*RUNS, *PLAIN, *DOCUMENTS, digests.FOLDER}
        if others := sorted(entry.name for entry in _entries(state) if entry.name not in known):
            self._report.remarks.append(f"left out of {state}: {', '.join(others)}")
        index = Index(made_at=now(), files=self._digests).model_dump_json(indent=1).encode()
        self._tar.addfile(_described(INDEX, len(index)), io.BytesIO(index))
        return self._report

    def _model(self, repository: Path, folder: Path) -> None:
        name, copied = folder.name, set[int]()
        self._versions(repository, name, copied)
        while True:
            aliases = _read(folder / versions.ALIASES)
            with suppress(ValueError):  # aliases that cannot be read are copied as they are
                named = set(versions.read_aliases([repository], name).values()) & versions.versions([repository], name).keys()
                if not named <= copied:
                    self._versions(repository, name, copied)
                    continue
            if aliases == _read(folder / versions.ALIASES):
                break
        if aliases is not None:
            self._add(f"{MODELS}/{name}/{versions.ALIASES}", io.BytesIO(aliases), len(aliases))
        for ledger in (numbers.NUMBERS, numbers.RUNS):
            for entry in (folder / ledger).glob("*"):
                self._unchanging(entry, f"{MODELS}/{name}/{ledger}/{entry.name}")
        for number in numbers.removed(folder) - copied:
            self._tar.addfile(_described(f"{MODELS}/{name}/{numbers.REMOVED}/{number}", None))
        self._report.num_models += bool(copied)
        self._report.num_versions += len(copied)

    def _versions(self, repository: Path, name: str, copied: set[int]) -> None:
        for number, path in versions.versions([repository], name).items():
            where = f"{MODELS}/{name}/{number}"
            if number not in copied and self._unchanging(path, where):
                copied.add(number)
                self._check(path, where)

    def _check(self, path: Path, where: str) -> None:
        """Say of a version that it is damaged, though it is copied as it is."""
        try:
            named = Manifest.model_validate_json(_read(path / versions.MANIFEST) or b"").all_files.values()
        except ValidationError:
            self._report.remarks.append(f"{where} has no manifest that can be read, and is copied as it is")
            return
        if wrong := [spec.file for spec in named if self._digests.get(f"{where}/{spec.file}") != spec.sha256]:
            self._report.remarks.append(f"{where} is damaged ({', '.join(wrong)}), and is copied as it is")

    def _run(self, folder: Path, where: str) -> bool:
        """A run at a point from which it can go on: its newest whole checkpoint with the best state that this names, then what it says of
        itself, which is as new or newer. Its metrics past the checkpoint are written again."""
        if not (folder / runs.CONFIG).is_file():
            return False
        for _ in range(ATTEMPTS):
            before, missing = _names(folder), list[str]()
            if not before:
                return False  # removed at this moment
            with ExitStack() as opened:
                try:
                    files = _open_run(folder, opened, missing)
                except FileNotFoundError:
                    continue
                if missing and _names(folder) != before:
                    continue
                self._remark_missing(where, missing)
                for path, file in files:
                    self._add(f"{where}/{path}", file, os.fstat(file.fileno()).st_size)
                for name in (runs.CHECKPOINTS, runs.BEST, runs.SAMPLES):
                    self._tar.addfile(_described(f"{where}/{name}", None))
                return True
        raise BackupError(f"{folder} changed {ATTEMPTS} times while it was looked at: try again when its run writes fewer checkpoints")

    def _unchanging(self, path: Path, where: str) -> bool:
        """Whether it was there long enough to be opened, whole or as it is: what is missing in a directory that stays is damage."""
        before, missing = _identity(path), list[str]()
        with ExitStack() as opened:
            files = _open_all(path, opened, missing=missing)
            if missing and (now_there := _identity(path)) != before:
                return now_there is not None and self._unchanging(path, where)  # another one has its place
            if missing and before is None:
                return False  # removed at this moment
            self._remark_missing(where, missing)
            for relative, file in files:
                self._add(f"{where}/{relative}" if relative else where, file, os.fstat(file.fileno()).st_size)
        return bool(files) or path.is_dir()

    def _remark_missing(self, where: str, missing: Sequence[str]) -> None:
        if missing == [""]:
            self._report.remarks.append(f"{where} is a link that leads nowhere, and is left out")
        elif missing:
            self._report.remarks.append(f"{where} is damaged (missing: {', '.join(missing)}), and is copied as it is")

    def _document(self, path: Path, where: str) -> None:
        if (content := _read(path)) is not None:
            self._add(where, io.BytesIO(content), len(content))

    def _add(self, where: str, file: IO[bytes], size: int) -> None:
        reader = _Hashing(file)
        self._tar.addfile(_described(where, size), reader)
        self._digests[where] = reader.digest.hexdigest()


class _Hashing:
    """Reads, and hashes what was read."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self.digest.update(data)
        return data


def _entries(folder: Path) -> list[Path]:
    """What lies in a folder, sorted, but for what is half written or a lock."""
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(path for path in found if not path.name.startswith(".") and path.name != LOCK)


def _described(name: str, size: int | None) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.mode = (tarfile.DIRTYPE, 0, 0o755) if size is None else (tarfile.REGTYPE, size, 0o644)
    return info


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _open_all(path: Path, opened: ExitStack, prefix: str = "", missing: list[str] | None = None) -> list[tuple[str, IO[bytes]]]:
    """Every file of a directory, or the one file, open: what is removed from now on is still read whole.

    Args:
        missing: takes the names of what is not there, or leads nowhere. None: that raises FileNotFoundError.
    """
    try:
        if not path.is_dir():
            return [(prefix, opened.enter_context(path.open("rb")))]
        entries = _entries(path)
    except (FileNotFoundError, NotADirectoryError):
        if missing is None:
            raise
        missing.append(prefix)
        return []
    names = [(entry, f"{prefix}/{entry.name}" if prefix else entry.name) for entry in entries]
    return [file for entry, name in names for file in _open_all(entry, opened, name, missing)]


def _identity(path: Path) -> tuple[int, int] | None:
    """What tells a directory or file from another one in its place; None where there is none."""
    try:
        found = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino


def _names(folder: Path) -> set[str]:
    """Of all that lies in it, at any depth."""
    return {f"{here}/{name}" for here, folders, files in os.walk(folder) for name in (*folders, *files)}


def _open_run(folder: Path, opened: ExitStack, missing: list[str]) -> list[tuple[str, IO[bytes]]]:
    """The files of a run that can go on; raises FileNotFoundError where it went on meanwhile.

    Args:
        missing: takes the names of what is not there. Where the run has not gone on meanwhile, it is damaged.
    """
    checkpoint = next((path for path in _states(folder / runs.CHECKPOINTS) if _is_whole(path, missing)), None)
    files = [] if checkpoint is None else _open_all(checkpoint, opened, f"{runs.CHECKPOINTS}/{checkpoint.name}", missing)
    for best in _states(folder / runs.BEST):
        with suppress(FileNotFoundError), ExitStack() as maybe:
            files += _open_all(best, maybe, f"{runs.BEST}/{best.name}")
            opened.push(maybe.pop_all())
    if checkpoint is not None and not checkpoint.exists():
        raise FileNotFoundError(checkpoint)  # then the best state that it names may be gone too
    for entry in _entries(folder):
        if entry.name not in (runs.CHECKPOINTS, runs.BEST):
            files += _open_all(entry, opened, entry.name, missing)
    missing += sorted({runs.CONFIG, runs.STATUS} - {path for path, _ in files} - {*missing})
    return files


def _states(folder: Path) -> list[Path]:
    """The states of a run, newest first."""
    return sorted((path for path in _entries(folder) if path.name.isdecimal()), reverse=True)


def _is_whole(checkpoint: Path, missing: list[str]) -> bool:
    file = runs.CHECKPOINT_CARD
    try:
        state = FileSpec.model_validate(json.loads((checkpoint / file).read_bytes())["state"])
        file = state.file
        return sha256_of(checkpoint / file) == state.sha256
    except (ValueError, LookupError, TypeError):
        return False
    except FileNotFoundError:
        missing.append(f"{runs.CHECKPOINTS}/{checkpoint.name}/{file}")
        return False


# --- restoring ----------------------------------------------------------------------------------------------------------------


def restore(file: Path, repository: Path, state: Path) -> None:
    """Put back what a backup holds, verified, where there is nothing yet: the repository, then the state.

    Raises:
        BackupError: something is there already, or the file is damaged, or no backup; then nothing is changed.
        OSError: something cannot be read or written.
    """
    targets = {MODELS: repository, STATE: state}
    for target in targets.values():
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise BackupError(f"{target} is there already, and is not written over: choose other --models and --state, or move it away")
    with ExitStack() as stack:
        staged = {kind: stack.enter_context(staging(make_folder(target.parent))) for kind, target in targets.items()}
        try:
            with file.open("rb") as read, tarfile.open(fileobj=read, mode="r|") as tar:
                _extract(tar, staged)
        except (tarfile.TarError, EOFError, ValueError) as error:
            raise BackupError(f"{file} is no backup, or a damaged one: {str(error).splitlines()[0]}") from error
        for kind, target in targets.items():
            commit(staged[kind], target)
    for target in targets.values():
        with suppress(OSError):  # what others stage there stays
            (target.parent / STAGING).rmdir()


def _extract(tar: tarfile.TarFile, staged: dict[str, Path]) -> None:
    """Raises ValueError for what does not belong into a backup, and where something is missing or differs."""
    found: dict[str, str] = {}
    index: Index | None = None
    for member in tar:
        if index is not None or member.name in found or not (member.isreg() or member.isdir()):
            raise ValueError(f"{ascii(member.name)[:80]} does not belong there")
        content = tar.extractfile(member)
        if member.name == INDEX and content is not None:
            index = Index.model_validate_json(content.read())
            continue
        path = _inside(member.name, staged)
        if content is None:
            path.mkdir(parents=True, exist_ok=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with path.open("xb") as written:
            for chunk in _chunks(content):
                digest.update(chunk)
                written.write(chunk)
        found[member.name] = digest.hexdigest()
    if index is None:
        raise ValueError(f"it ends without its {INDEX}: it was cut off")
    if wrong := sorted(name for name in found.keys() | index.files.keys() if found.get(name) != index.files.get(name)):
        raise ValueError(f"{wrong[0]} is not what its {INDEX} says")


def _chunks(file: IO[bytes]) -> Iterator[bytes]:
    while chunk := file.read(CHUNK_BYTES):
        yield chunk


def _inside(name: str, staged: dict[str, Path]) -> Path:
    kind, *parts = name.split("/")
    if kind not in staged or not parts or not all(_is_plain(part) for part in parts):
        raise ValueError(f"{ascii(name)[:80]} does not belong there")
    return staged[kind].joinpath(*parts)


def _is_plain(part: str) -> bool:
    return part not in ("", ".", "..") and "\0" not in part and "\\" not in part


def left_out(repositories: Sequence[Path]) -> list[str]:
    """A sentence for each repository that is not in a backup."""
    return [f"{repository} is only read, and left out: keep a copy of where it is from" for repository in repositories[1:]]
