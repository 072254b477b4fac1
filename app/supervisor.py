"""The jobs that this server works on: each claimed in the index, run by a worker process of its own, and settled when that ends."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from app.errors import IndexUnavailable
from app.index import Claim, Index
from app.workers import WorkerError, WorkerSettings
from training.contract import FINISHED, JobState, JobStatus, now
from training.files import events, locks, runs

STOPPED = 75  # the worker's exit code when it was asked to stop and can go on later
MAX_DEATHS = 3  # of one job's worker, with no checkpoint between them, before it is called a crash loop
ADOPTED_POLL_SECONDS = 0.5  # a worker that another server started is no child: its lock is looked at
TERMINATE_SECONDS = 20.0  # for a last checkpoint
ASIDE_SECONDS = 60.0  # that a job waits whose directory cannot be read or written
POLL_SECONDS = 2.0  # what another process has put into the index is found so soon
LEASE_SECONDS = 30.0  # after which a server that is not heard of has lost its jobs to the others
RENEW_SECONDS = 5.0
_RESTING: frozenset[JobState] = FINISHED | {"paused"}
Result = TypeVar("Result")
_log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Work:
    """One claim; `process` is None where another server has started the worker."""

    claim: Claim
    process: asyncio.subprocess.Process | None = None
    is_asked_to_stop: bool = False


class Supervisor:
    """As many jobs at once as there are devices. `on_published` is awaited with the name of what a job published, so that it is served."""

    def __init__(
        self,
        folder: Path,
        index: Index,
        worker: WorkerSettings,
        devices: Sequence[str],
        on_published: Callable[[str], Awaitable[None]],
    ) -> None:
        """
        Args:
            devices: one for each job that may run at once.
        """
        self._folder, self._index, self._worker, self._devices, self._on_published = folder, index, worker, devices, on_published
        self._wake = asyncio.Event()
        self._claiming = asyncio.Lock()
        self._held: dict[str, _Work] = {}
        self._set_aside: dict[str, float] = {}  # until when; by the monotonic clock
        self._closing = False
        self._stopped_at: float | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._work(device)) for device in self._devices]
        if self._index.is_shared:
            self._tasks.append(asyncio.create_task(self._hold_on()))

    def wake(self) -> None:
        """There may be something to do."""
        self._wake.set()

    def stop(self) -> None:
        """Begin nothing more, and ask the workers for a checkpoint; the jobs go on at the next start."""
        self._closing = True
        self._stopped_at = self._stopped_at or time.monotonic()
        self._wake.set()
        for work in self._held.values():
            self._ask_to_stop(work)

    async def close(self) -> None:
        """Stop, and wait for the workers."""
        self.stop()
        assert self._stopped_at is not None
        left = max(0.0, self._stopped_at + TERMINATE_SECONDS - time.monotonic())
        if self._tasks and (await asyncio.wait(self._tasks, timeout=left))[1]:
            for work in self._held.values():
                if work.process is not None:
                    _log.warning("job %s: its worker did not stop within %s s and is killed", work.claim.id, TERMINATE_SECONDS)
                    with suppress(ProcessLookupError):
                        work.process.kill()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def check_alive(self) -> None:
        """Raise what ended a task, if anything has: that is a bug, and whoever looks after the server must see it."""
        for task in self._tasks:
            if task.done() and not self._closing:
                task.result()

    # --- the queue ---

    async def _work(self, device: str) -> None:
        while not self._closing:
            self._wake.clear()
            work = await self._claim()
            if work is None:
                await self._rest(POLL_SECONDS)
                continue
            try:
                await self._attend(work, device)
            except (OSError, ValueError):  # its directory is damaged or the disk is; the other jobs go on
                _log.exception("job %s is left as it is, and tried again in %s s", work.claim.id, ASIDE_SECONDS)
                self._set_aside[work.claim.id] = time.monotonic() + ASIDE_SECONDS
            del self._held[work.claim.id]

    async def _claim(self) -> _Work | None:
        async with self._claiming:
            aside = {id for id, until in self._set_aside.items() if until > time.monotonic()}
            try:
                claim = await asyncio.to_thread(self._index.claim, self._held.keys() | aside, LEASE_SECONDS)
            except IndexUnavailable as error:
                _log.warning("no job can be begun: %s", error)
                return None
            if claim is None:
                return None
            self._held[claim.id] = work = _Work(claim)
            return work

    async def _rest(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._wake.wait(), seconds)
        except TimeoutError:
            return

    async def _hold_on(self) -> None:
        """Renew the leases; a worker whose lease cannot be renewed ends before another server may claim its job."""
        renewed = time.monotonic()
        while not self._closing:
            await asyncio.sleep(RENEW_SECONDS)
            claims = [work.claim for work in self._held.values()]
            try:
                async with asyncio.timeout(RENEW_SECONDS):
                    kept = await asyncio.to_thread(self._index.renew, claims, LEASE_SECONDS)
            except (IndexUnavailable, TimeoutError) as error:
                _log.warning("the leases of %d jobs cannot be renewed: %s", len(claims), error)
                if time.monotonic() - renewed < LEASE_SECONDS / 2:
                    continue
                kept = set()
            else:
                renewed = time.monotonic()
            for work in self._held.values():
                if work.claim in claims and work.claim not in kept:
                    _log.warning("job %s: its lease is lost, and its worker is asked to end", work.claim.id)
                    self._ask_to_stop(work)

    def _ask_to_stop(self, work: _Work) -> None:
        if work.is_asked_to_stop:
            return
        work.is_asked_to_stop = True
        if work.process is None:
            if locks.is_held(self._folder / work.claim.id):
                runs.ask_to_stop(self._folder / work.claim.id)  # it is no child: it looks for the wish itself
            return
        try:
            work.process.terminate()
        except ProcessLookupError:
            _log.debug("job %s: its worker had ended already", work.claim.id)

    # --- one job ---

    async def _attend(self, work: _Work, device: str) -> None:
        folder, code = self._folder / work.claim.id, None
        if await asyncio.to_thread(locks.is_held, folder):
            await self._adopt(work)
        else:
            # first of all: a worker that was started before, and does not hold the lock yet, ends when it does
            await asyncio.to_thread(runs.grant, folder, work.claim.attempt)
            status = await asyncio.to_thread(runs.read_status, folder)
            if status.state not in _RESTING and not runs.is_pause_asked(folder):
                code = await self._run(work, device)
        await self._settle(work, code)

    async def _adopt(self, work: _Work) -> None:
        """Wait for the end of a worker that is no child, and so has no exit code for us."""
        _log.info("job %s: its worker is alive; watching it", work.claim.id)
        if self._closing:
            work.is_asked_to_stop = False
            self._ask_to_stop(work)
        while await asyncio.to_thread(locks.is_held, self._folder / work.claim.id):
            await asyncio.sleep(ADOPTED_POLL_SECONDS)

    async def _run(self, work: _Work, device: str) -> int:
        """Start a worker and wait for its end; its exit code."""
        folder = self._folder / work.claim.id
        try:
            work.process = await self._worker.start(folder, device, work.claim.attempt)
        except WorkerError as error:
            self._finish(folder, "failed", f"its worker cannot be started: {error}; ask for the same training again")
            return 1
        _log.info("job %s: worker %s started on %s", work.claim.id, work.process.pid, device)
        if self._closing:
            work.is_asked_to_stop = False
            self._ask_to_stop(work)
        code = await work.process.wait()
        _log.info("job %s: worker ended with %s", work.claim.id, code)
        return code

    async def _settle(self, work: _Work, code: int | None) -> None:
        """After a worker: its model is served, or its job queued again, or called a crash loop."""
        if work.claim not in await self._persist(lambda: self._index.renew([work.claim], LEASE_SECONDS), set[Claim]()):
            _log.warning("job %s: another server has claimed it, or the index does not answer; it is left to who claims it", work.claim.id)
            return
        folder = self._folder / work.claim.id
        status = await asyncio.to_thread(self._conclude, folder, code, work.is_asked_to_stop)
        if status.state in FINISHED and status.model is not None:
            try:
                await self._on_published(status.model)
            except OSError as error:
                _log.warning("model %s cannot be looked at now, and is served later: %s", status.model, error)
        await self._persist(lambda: self._index.release(work.claim, status.state), False)
        if status.state == "paused" and runs.is_cancel_asked(folder):  # while it was being put to rest
            await self._persist(lambda: cancel(folder, self._index), None)

    def _conclude(self, folder: Path, code: int | None, was_asked_to_stop: bool) -> JobStatus:
        """Bring a job whose worker is gone into the state that it is to have."""
        status = runs.read_status(folder)
        if status.state in _RESTING:
            events.tell_state(folder, status)  # where the worker died before it could
        elif runs.is_cancel_asked(folder):
            self._finish(folder, "cancelled", f"cancelled {when(status)}")
        elif runs.is_pause_asked(folder):
            park(folder)
        elif self._closing or was_asked_to_stop:
            runs.enter_state(folder, status.model_copy(update={"state": "queued"}))
        else:
            self._queue_again(folder, status, code)
        return runs.read_status(folder)

    def _queue_again(self, folder: Path, status: JobStatus, code: int | None) -> None:
        died = status.state == "running" or code not in (None, STOPPED)  # the second, before it could say anything
        if died and (num_deaths := runs.count_death(folder)) >= MAX_DEATHS:
            why = f"crash loop: its worker died {num_deaths} times without a new checkpoint; {runs.LOG} may say why"
            self._finish(folder, "failed", why)
            return
        message = status.message or "its worker died; it goes on from its last checkpoint"
        runs.enter_state(folder, status.model_copy(update={"state": "queued", "message": message}))

    def _finish(self, folder: Path, state: JobState, message: str) -> None:
        status = runs.read_status(folder)
        runs.enter_state(folder, status.model_copy(update={"state": state, "message": message, "finished_at": now()}))

    async def _persist(self, work: Callable[[], Result], otherwise: Result) -> Result:
        """What the index is to be told, as soon as it answers; a server that ends leaves it to the next."""
        while True:
            try:
                return await asyncio.to_thread(work)
            except IndexUnavailable as error:
                _log.warning("%s", error)
                if self._closing:
                    return otherwise
                await asyncio.sleep(POLL_SECONDS)


def cancel(folder: Path, index: Index) -> None:
    """The wish to end is fulfilled, where no worker is there to do so."""
    if index.change(folder.name, ("queued", "paused"), "cancelled"):
        status = runs.read_status(folder)
        end = {"state": "cancelled", "message": f"cancelled {when(status)}", "finished_at": now()}
        runs.enter_state(folder, status.model_copy(update=end))


def park(folder: Path) -> None:
    """The wish to pause is fulfilled."""
    status = runs.read_status(folder)
    runs.enter_state(folder, status.model_copy(update={"state": "paused", "message": f"paused {when(status)}"}))
    runs.forget_pause(folder)


def when(status: JobStatus) -> str:
    seen = status.progress.images
    return f"after {seen:,} of {status.progress.total_images:,} images" if seen else "before it started"
