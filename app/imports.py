"""Archives that were sent become data sets, one after the other, each by a worker process of its own.

An import's directory is the truth (training.files.imports); what is kept here can be lost at any moment and found again.
"""

import asyncio
import logging
import shutil
import time
from contextlib import suppress
from pathlib import Path

from app.workers import WorkerError, start_import
from training.files import imports, locks
from training.files.directories import STAGING
from training.files.imports import ImportStatus

MAX_DEATHS = 3  # of one import's worker, before it is given up
ADOPTED_POLL_SECONDS = 0.5  # a worker that another server started is no child: its lock is looked at
TERMINATE_SECONDS = 20.0
PAUSE_SECONDS = 5.0  # of an import that the disk fails, before it is tried again
SECONDS_TO_STAY = 24 * 3600.0  # of what another server may be receiving, after the last that came
_log = logging.getLogger(__name__)


class Importer:
    """The queue of imports and its one worker."""

    def __init__(self, folder: Path, datasets: Path, *, is_shared: bool) -> None:
        """
        Args:
            is_shared: whether other servers use these folders too.
        """
        self._folder, self._datasets, self._is_shared = folder, datasets, is_shared
        self._queue: list[str] = []
        self._wake = asyncio.Event()
        self._current: str | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._closing = False
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Find the imports that are not finished, and go on with them; what was half sent when a server died is taken away."""
        self._queue = await asyncio.to_thread(self._find)
        self._task = asyncio.create_task(self._work())

    def _find(self) -> list[str]:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._sweep()
        waiting = []
        for path in imports.paths(self._folder):
            try:
                if imports.read_status(path).state == "importing":
                    waiting.append((not locks.is_held(path), imports.read_request(path).created_at, path.name))
                else:
                    imports.archive(path).unlink(missing_ok=True)  # its worker died before it could
            except (OSError, ValueError) as error:
                _log.warning("the import %s cannot be read and is left out: %s", path.name, error)
        return [name for *_, name in sorted(waiting)]

    def _sweep(self) -> None:
        """Take away what nobody is receiving any more: all, where no other server receives, else what nothing came to for a day."""
        staging = self._folder / STAGING
        for path in list(staging.iterdir()) if staging.is_dir() else []:
            with suppress(FileNotFoundError):  # its server takes it away at this moment
                touched = max(each.stat().st_mtime for each in (path, *path.rglob("*")))
                if not self._is_shared or touched < time.time() - SECONDS_TO_STAY:
                    shutil.rmtree(path, ignore_errors=True)

    async def close(self) -> None:
        """End the worker; its import is begun anew at the next start."""
        self._closing = True
        self._wake.set()
        self._end_process()
        if self._task is not None:
            try:
                await asyncio.wait_for(self._task, TERMINATE_SECONDS)
            except TimeoutError:
                _log.warning("the work on the import %s did not end within %s s", self._current, TERMINATE_SECONDS)

    def add(self, name: str) -> None:
        self._queue.append(name)
        self._wake.set()

    def drop(self, name: str) -> None:
        """Its directory has been taken away."""
        if name in self._queue:
            self._queue.remove(name)
        if name == self._current:
            self._end_process()

    def check_alive(self) -> None:
        """Raise what ended the queue, if anything has."""
        if self._task is not None and self._task.done() and not self._closing:
            self._task.result()

    def _end_process(self) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.kill()  # it keeps nothing that could be lost

    # --- working ---

    async def _work(self) -> None:
        while not self._closing:
            if not self._queue:
                self._wake.clear()
                await self._wake.wait()
                continue
            name = self._current = self._queue.pop(0)
            folder = self._folder / name
            try:
                if await asyncio.to_thread(locks.is_held, folder):
                    await self._adopt(folder)
                else:
                    await self._run(folder)
                if await asyncio.to_thread(self._wants_another, folder):
                    self._queue.insert(0, name)
            except FileNotFoundError:
                _log.info("the import %s was taken away", name)
            except OSError:  # a full disk, most often; the other imports go on
                _log.exception("the import %s is tried again in %s s", name, PAUSE_SECONDS)
                asyncio.get_running_loop().call_later(PAUSE_SECONDS, self.add, name)
            except ValueError:  # its directory is damaged
                _log.exception("the import %s is left as it is, and tried again when the server starts", name)
            self._current = None

    async def _adopt(self, folder: Path) -> None:
        _log.info("import %s: its worker is alive; watching it", folder.name)
        while not self._closing and await asyncio.to_thread(locks.is_held, folder):
            await asyncio.sleep(ADOPTED_POLL_SECONDS)

    async def _run(self, folder: Path) -> None:
        """Start a worker and wait for its end."""
        status = await asyncio.to_thread(imports.read_status, folder)
        if status.state != "importing":  # it was finished before the disk failed
            return
        # counted before it is begun: whoever takes the server along when he dies is counted too
        await asyncio.to_thread(self._change, folder, attempts=status.attempts + 1)
        try:
            self._process = await start_import(folder, self._datasets)
        except WorkerError as error:
            await asyncio.to_thread(self._fail, folder, f"its worker cannot be started: {error}")
            return
        _log.info("import %s: worker %s started", folder.name, self._process.pid)
        if self._closing:
            self._end_process()
        code = await self._process.wait()
        _log.info("import %s: worker ended with %s", folder.name, code)
        self._process = None
        if self._closing:  # it was ended, and has not died
            await asyncio.to_thread(self._change, folder, attempts=status.attempts)

    def _wants_another(self, folder: Path) -> bool:
        """After a worker: whether its import is to be begun anew; else it is finished, or given up."""
        status = imports.read_status(folder)
        if status.state != "importing" or self._closing:
            return False
        if status.attempts >= MAX_DEATHS:
            self._fail(folder, f"its worker died {status.attempts} times; {imports.LOG} may say why")
            return False
        return True

    def _fail(self, folder: Path, reason: str) -> None:
        self._change(folder, state="failed", message=f"{reason}; remove the data set and send it again")
        imports.archive(folder).unlink(missing_ok=True)

    def _change(self, folder: Path, **changes: object) -> ImportStatus:
        status = imports.read_status(folder).model_copy(update=changes)
        imports.write_status(folder, status)
        return status
