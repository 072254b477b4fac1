"""Data sets as clients see them: sent, listed, looked at, removed. What they send is kept here, and read by a worker alone."""

import asyncio
import errno
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

from starlette.requests import ClientDisconnect

from app import encoders, visits
from app.errors import ArchiveInvalid, ClientLeft, Conflict, FieldError, InsufficientStorage, Invalid, UnknownDataset, show
from app.imports import Importer
from app.jobs import JobService
from app.rooms import Room
from app.schemas.datasets import BrokenDataset, Dataset, DatasetProgress, Datasets
from training import datasets
from training.contract import is_name, now
from training.dataset_sheets import UnknownClassError, sheet
from training.datasets import DamagedDatasetError, DatasetNameError, UnknownDatasetError
from training.files import imports
from training.files.directories import RESERVED_BYTES, commit, hide, staging
from training.files.imports import DatasetOptions, ImportRequest, ImportStatus

MAX_UPLOADS = 8  # archives that are on their way at a time
_BLOCK_BYTES = 2**20
_BEGINNINGS = (b"PK\x03\x04", b"PK\x05\x06")  # of a file, and of the end of an empty archive
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class DatasetService:
    """Those that lie in a folder and those that are built in; and in another folder the archives that are to become some."""

    def __init__(self, folder: Path, imports_folder: Path, jobs: JobService, *, is_shared: bool = False) -> None:
        """
        Args:
            is_shared: whether other servers use these folders too.
        """
        self._folder, self._imports, self._jobs = folder, imports_folder, jobs
        self._uploads = Room("uploads", "archives are being sent", MAX_UPLOADS)
        self._changing = asyncio.Lock()
        self._importer = Importer(imports_folder, folder, is_shared=is_shared)

    async def start(self) -> None:
        await self._importer.start()

    async def close(self) -> None:
        await self._importer.close()

    def check_alive(self) -> None:
        self._importer.check_alive()

    # --- sending ---

    async def submit(self, options: DatasetOptions, key: str | None, body: AsyncIterator[bytes], num_bytes: int | None) -> Dataset:
        """Keep an archive, and let a set be made of it.

        Args:
            key: the client's own name for this request. An import that it made before is the answer, as long as that or its set is there.
            num_bytes: how long the body says that it is.

        Raises:
            Conflict: the name is taken.
            Invalid: the body is no archive, or the key was used for something else.
            InsufficientStorage: there is no room for it.
            Overloaded: too many are being sent.
            ClientLeft: in the midst of it. Nothing is left of it, nor of one that is refused.
        """
        await asyncio.to_thread(self._refuse, options, key)  # before it is sent
        with self._uploads.holding(1), _told_where_full():
            await asyncio.to_thread(self._imports.mkdir, parents=True, exist_ok=True)
            with staging(self._imports) as staged:
                try:
                    digest = await _keep(body, staged / imports.archive_name(options.name), num_bytes)
                    request = ImportRequest(options=options, archive_sha256=digest, key=key, created_at=now())
                    async with self._changing:  # of two with one name or key, the second finds the first
                        if await asyncio.to_thread(self._commit, staged, request):
                            self._importer.add(options.name)
                finally:  # of a large archive, what is not wanted takes its time
                    await asyncio.to_thread(shutil.rmtree, staged, ignore_errors=True)
        return await self.get(options.name)

    def _refuse(self, options: DatasetOptions, key: str | None, digest: str | None = None) -> bool:
        """Whether this very request made an import before; raises Conflict or Invalid where it can make none."""
        made = None if key is None else self._made_by(key)
        if made is not None:
            if made.options != options or digest not in (None, made.archive_sha256):
                raise Invalid(
                    f"the Idempotency-Key {show(key)} was sent with another archive or other options, for data set {made.options.name};"
                    " a new request wants a new key"
                )
            return True
        name, status = options.name, self._status(options.name)
        try:
            datasets.check_free(name, self._folder)  # first: a set is there a moment before its import says so
        except DatasetNameError as error:
            raise Conflict(str(error)) from error
        if status is not None and status.state == "importing":
            raise Conflict(f"data set {name!r} is being made; choose another name")
        if status is not None and status.state == "failed":
            raise Conflict(f"data set {name!r} could not be made before ({status.message}); remove it by DELETE /datasets/{name} first")
        return False

    def _made_by(self, key: str) -> ImportRequest | None:
        """What a request with this key asked for, while there is something of it."""
        for path in imports.paths(self._imports):
            status = self._status(path.name)
            if status is None or (status.state == "ready" and not (self._folder / path.name).is_dir()):
                continue
            with suppress(OSError, ValueError):  # damaged, or removed at this moment
                if (request := imports.read_request(path)).key == key:
                    return request
        return None

    def _commit(self, staged: Path, request: ImportRequest) -> bool:
        """Whether an import came of what is staged: whole and durable, or not at all."""
        if self._refuse(request.options, request.key, request.archive_sha256):
            return False
        folder = self._imports / request.options.name
        if folder.is_dir():  # of a set that is there no more
            shutil.rmtree(hide(folder))
        imports.write_request(staged, request)
        imports.write_status(staged, ImportStatus())
        try:
            commit(staged, folder)
        except FileExistsError as error:  # another server was faster, maybe with this very request
            if self._refuse(request.options, request.key, request.archive_sha256):
                return False
            raise Conflict(f"data set {request.options.name!r} was sent to another server meanwhile; choose another name") from error
        return True

    # --- looking ---

    async def get(self, name: str) -> Dataset:
        """Raises UnknownDataset."""
        return await asyncio.to_thread(self._read, name, await self._jobs.datasets_in_use())

    async def listing(self) -> Datasets:
        return await asyncio.to_thread(self._list, await self._jobs.datasets_in_use())

    async def sheet(self, name: str, num_images: int, label: str | None) -> bytes:
        """A PNG of some of its images.

        Raises:
            UnknownDataset; Conflict: it is not there yet; Invalid: it has no such class.
        """
        found = await self.get(name)
        if found.card is None:
            raise Conflict(f"data set {name!r} is {found.state}; it has a sheet once it is ready")
        return await asyncio.to_thread(self._sheet, name, num_images, label)

    def _sheet(self, name: str, num_images: int, label: str | None) -> bytes:
        try:
            return encoders.png(sheet(datasets.look(name, self._folder), num_images, label))
        except UnknownClassError as error:
            raise Invalid(str(error), errors=(FieldError(pointer="/label", message=str(error), given=show(label)),)) from error
        except (UnknownDatasetError, DamagedDatasetError) as error:
            raise UnknownDataset(str(error)) from error

    def _list(self, used: dict[str, list[str]]) -> Datasets:
        broken = datasets.broken(self._folder)
        importing = {path.name for path in imports.paths(self._imports) if (status := self._status(path.name)) and status.state != "ready"}
        names = sorted(datasets.known(self._folder).keys() | importing - broken.keys())
        found = []
        for name in names:
            try:
                found.append(self._read(name, used))
            except UnknownDataset:
                continue  # removed at this moment
        return Datasets(datasets=found, broken=[BrokenDataset(name=name, reason=reason) for name, reason in broken.items()])

    def _read(self, name: str, used: dict[str, list[str]]) -> Dataset:
        status = self._status(name)  # first: a set that is made meanwhile is found then
        try:
            card = datasets.card(name, self._folder)
        except (UnknownDatasetError, DamagedDatasetError) as error:
            if isinstance(error, DamagedDatasetError) or status is None or status.state == "ready":
                raise UnknownDataset(str(error)) from error
            progress = None if status.num_files is None else DatasetProgress(num_files=status.num_files, num_done=status.num_done)
            return Dataset(name=name, state=status.state, progress=progress, message=status.message, built_in=False, card=None, used_by=[])
        used_by, built_in = used.get(name, []), datasets.is_built_in(name)
        return Dataset(name=name, state="ready", progress=None, message="", built_in=built_in, card=card, used_by=used_by)

    def _status(self, name: str) -> ImportStatus | None:
        """Of the import of this name, where there is one."""
        if not is_name(name):  # no path is made of what is none
            return None
        try:
            return imports.read_status(self._imports / name)
        except FileNotFoundError:
            return None
        except ValueError:
            return ImportStatus(state="failed", message=f"its {imports.STATUS} is damaged")

    # --- removing ---

    async def remove(self, name: str) -> None:
        """Take a set from the disk, or an import and what it has made so far.

        Raises:
            UnknownDataset: neither is there.
            Conflict: it is built in, or used by a job that may go on.
        """
        async with self._changing, self._jobs.changing:  # no job may come to use it meanwhile
            hidden = await asyncio.to_thread(self._hide, name, (await self._jobs.datasets_in_use()).get(name, []))
            self._importer.drop(name)
        for folder in hidden:
            await asyncio.to_thread(shutil.rmtree, folder)

    def _hide(self, name: str, ids: list[str]) -> list[Path]:
        status = self._status(name)
        if ids and not datasets.is_built_in(name):
            raise Conflict(f"data set {name!r} is used by {', '.join(ids)}: cancel those jobs first, or wait for their end")
        hidden = [] if status is None else [hide(self._imports / name)]  # first: from now on, no set can come of it
        try:
            hidden.append(datasets.take_away(name, self._folder))
        except UnknownDatasetError as error:
            if not hidden:
                raise UnknownDataset(str(error)) from error
        except DatasetNameError as error:
            raise Conflict(str(error)) from error
        return hidden


# --- receiving ----------------------------------------------------------------------------------------------------------------


@contextmanager
def _told_where_full() -> Iterator[None]:
    """Raises InsufficientStorage where the disk has no room, for a folder, an archive or what is written beside it."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise InsufficientStorage(f"the archive cannot be kept: {error.strerror}; remove data sets or jobs, or send less") from error


async def _keep(body: AsyncIterator[bytes], path: Path, num_bytes: int | None) -> str:
    """Write what comes into a new file; its sha256."""
    kept = _Kept(path, num_bytes)
    try:
        async for block in _blocks(body):
            await asyncio.to_thread(kept.append, block)
    except ClientDisconnect:
        visits.current().refused = "left"
        raise ClientLeft("the client closed the connection before its archive was here") from None
    finally:
        with suppress(OSError):  # it flushes again what could not be written, which has been said
            kept.file.close()
    if not kept.num_bytes:
        kept.check_beginning(b"")
    return kept.hash.hexdigest()


async def _blocks(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same bytes in larger pieces, so that few of them wait for the disk."""
    gathered = bytearray()
    async for piece in body:
        gathered += piece
        if len(gathered) >= _BLOCK_BYTES:
            yield bytes(gathered)
            gathered.clear()
    if gathered:
        yield bytes(gathered)


class _Kept:
    """A file that grows as long as there is room."""

    def __init__(self, path: Path, stated: int | None) -> None:
        self.file: BinaryIO = path.open("xb")
        self.hash = sha256()
        self.num_bytes = 0
        self._folder, self._stated = path.parent, stated

    def append(self, block: bytes) -> None:
        if self.num_bytes == 0:
            self.check_beginning(block)
        wanted = max(len(block), (self._stated or 0) - self.num_bytes)
        if (free := shutil.disk_usage(self._folder).free) < wanted + RESERVED_BYTES:
            raise InsufficientStorage(
                f"the archive wants {wanted:,} more bytes, and the disk has {free:,}, of which {RESERVED_BYTES:,} are kept free;"
                " remove data sets or jobs, or send less"
            )
        self.file.write(block)
        self.file.flush()
        self.hash.update(block)
        self.num_bytes += len(block)

    def check_beginning(self, block: bytes) -> None:
        if not block.startswith(_BEGINNINGS):
            begins = f"begins with {show(block[:8])}" if block else "is empty"
            raise ArchiveInvalid(f"the body is no ZIP archive: it {begins}; send one, as `zip -r pets.zip pets` makes it")
