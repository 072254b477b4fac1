"""Training jobs, as routes ask for them: submit, list, cancel, pause, resume, retry, remove.

The job's directory is the truth (training.files.runs), the index is where it is found (app.index); both can be lost at any moment of what
is done here, and are brought together again at the next start (app.reconciliation). Who runs the jobs is the supervisor.
"""

import asyncio
import json
import logging
import shutil
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from pydantic import JsonValue

from app import watching
from app.errors import Conflict, FieldError, IndexDamaged, IndexUnavailable, Invalid, NotServed, UnknownJob, show
from app.index import ALL, Entry, Filter, Index
from app.reconciliation import asked, entry_of, reconcile, reconcile_one
from app.schemas.training import Job, JobProgress, Jobs
from app.supervisor import Supervisor, cancel, park
from app.workers import WorkerSettings
from training import catalog
from training.contract import FINISHED, JobState, TrainConfig, is_name
from training.files import runs
from training.files.directories import STAGING, hide

LOG_END_BYTES = 4000  # of a failed job's log, beside the sentence that says why
_ENDED: tuple[JobState, ...] = ("succeeded", "failed", "cancelled")
_log = logging.getLogger(__name__)


class JobService:
    """The jobs of a state folder. `on_published` is awaited with the name of what a job published, so that it is served."""

    def __init__(
        self,
        folder: Path,
        index: Index,
        worker: WorkerSettings,
        on_published: Callable[[str], Awaitable[None]],
        devices: Sequence[str] = ("cpu",),
    ) -> None:
        """
        Args:
            devices: one for each job that may run at once.
        """
        self._folder, self._index, self._worker = folder, index, worker
        self._supervisor = Supervisor(folder, index, worker, devices, on_published)
        self._opening = asyncio.Lock()
        self.changing = asyncio.Lock()  # held while a job comes, goes or changes
        self._is_open = False
        self.newest_id: str | None = None  # that this server knows of

    # --- life ---

    async def start(self) -> None:
        """Find the jobs that are not finished, and go on with them. A damaged index that no other server shares is made anew.

        Raises:
            IndexUnavailable: the database cannot be reached.
        """
        try:
            await self._ready(forget=not self._index.is_shared)
        except IndexUnavailable as error:
            if self._index.is_shared or not isinstance(error, IndexDamaged):
                raise
            aside = await asyncio.to_thread(self._index.put_aside)
            _log.warning("%s; the damaged one lies in %s", error, aside)
            await self._ready()
        self._supervisor.start()

    async def _ready(self, *, forget: bool = False) -> None:
        """Open the index, once; a process that asks for no job makes none."""
        async with self._opening:
            if not self._is_open:
                await asyncio.to_thread(self._open, forget)
                self._is_open = True

    def _open(self, forget: bool) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._index.open()
        if forget:  # this server is alone: what is staged there, dead ones have left
            shutil.rmtree(self._folder / STAGING, ignore_errors=True)
        reconcile(self._folder, self._index, forget=forget)
        self.newest_id = next(iter(self._index.ids(ALL, 1)), None)

    def stop(self) -> None:
        """Ask the workers for a checkpoint, and begin nothing more."""
        self._supervisor.stop()

    async def close(self) -> None:
        """Stop, and wait for the workers; the jobs go on at the next start."""
        await self._supervisor.close()
        self._index.close()

    def check_alive(self) -> None:
        """Raise what ended the supervisor, if anything has."""
        self._supervisor.check_alive()

    # --- what routes ask ---

    async def submit(self, config: TrainConfig, key: str | None = None, priority: int = 0) -> Job:
        """Check the config against its data, make the job durable, and queue it.

        Args:
            key: the client's own name for this request. A job that it made before is the answer, as long as that is there.
            priority: jobs of a higher one go first.

        Raises:
            Invalid: the config cannot be run; every reason with its field. Or the key was used for another config.
            NotServed: this process has no trainer.
            IndexUnavailable: the database does not answer.
        """
        await self._ready()
        async with self.changing:  # of two requests with one key, the second finds the first one's job
            id = None if key is None else await asyncio.to_thread(self._made_by, key, config)
            if id is None:
                id = await asyncio.to_thread(self._create, config, key, priority)
                self.newest_id = id
                self._supervisor.wake()
        return await self.get(id)

    def _made_by(self, key: str, config: TrainConfig) -> str | None:
        """The job that a request with this key has made."""
        id = self._index.made_by(key)
        if id is not None and not (self._folder / id).exists():  # the index failed in the midst of it, and nobody was told
            self._index.remove(id, ("queued",))
            return None
        if id is not None and asked(self._folder / id) != _request(key, config):
            raise Invalid(f"the Idempotency-Key {show(key)} was sent with another config, for job {id}; a new request wants a new key")
        return id

    def _create(self, config: TrainConfig, key: str | None, priority: int) -> str:
        try:
            resolved = catalog.resolve(config, self._worker.datasets, self._worker.repositories, self._worker.weights)
        except catalog.ConfigError as error:
            fields = tuple(FieldError(pointer=pointer, message=message) for pointer, message in error.errors)
            raise Invalid(str(error), errors=fields) from error
        except ImportError as error:
            raise NotServed(f"this process serves only; it has no {error.name}") from error
        id, place = runs.new_id(), self._index.next_place()
        request = None if key is None else json.dumps(_request(key, config)).encode()
        runs.create(self._folder / id, resolved, id, request, priority=priority, place=place)
        try:
            known = self._index.add(entry_of(self._folder / id))
        except IndexUnavailable:
            shutil.rmtree(hide(self._folder / id))  # or it would run one day, and nobody has been told of it
            raise
        if known != id:  # by another server, at this moment
            shutil.rmtree(hide(self._folder / id))
        return known

    async def get(self, id: str) -> Job:
        """Raises UnknownJob."""
        await self._ready()
        return await asyncio.to_thread(self._read, id)

    async def page(self, limit: int, after: str | None = None, wanted: Filter = ALL) -> Jobs:
        """Jobs, newest first, from the one behind `after` on."""
        await self._ready()
        return await asyncio.to_thread(self._page, limit, after, wanted)

    def _page(self, limit: int, after: str | None, wanted: Filter) -> Jobs:
        ids, positions = self._index.ids(wanted, limit + 1, after), self._index.positions()
        jobs = []
        for id in ids[:limit]:
            with suppress(UnknownJob):  # damaged, or removed at this moment
                jobs.append(self._read(id, positions))
        return Jobs(jobs=jobs, next=ids[limit - 1] if len(ids) > limit else None)

    async def datasets_in_use(self) -> dict[str, list[str]]:
        """The jobs that are not at an end, by the data set of each."""
        await self._ready()
        return await asyncio.to_thread(self._index.datasets_in_use)

    async def cancel(self, id: str) -> Job:
        """Leave the wish to end; a queued or paused job ends at once, a running one at its worker's next beat.

        Raises:
            UnknownJob: there is no such job.
            Conflict: it is finished.
        """

        def ask(folder: Path) -> None:
            runs.ask_to_cancel(folder)
            cancel(folder, self._index)

        return await self._change(id, "cancelled", ("queued", "running", "paused"), ask)

    async def pause(self, id: str) -> Job:
        """A queued job waits from now on, a running one once its worker has kept a checkpoint; until `resume`.

        Raises:
            UnknownJob: there is no such job.
            Conflict: it is paused or finished.
        """

        def pause(folder: Path) -> None:
            runs.ask_to_pause(folder)
            if self._index.change(id, ("queued",), "paused"):
                park(folder)

        return await self._change(id, "paused", ("queued", "running"), pause)

    async def resume(self, id: str) -> Job:
        """Put a paused job at the end of the queue; it goes on from its last checkpoint. Raises as `pause` does."""
        return await self._queue_again(id, "resumed", ("paused",))

    async def retry(self, id: str) -> Job:
        """Put a failed or cancelled job at the end of the queue; it goes on from its last checkpoint. Raises as `pause` does."""
        return await self._queue_again(id, "retried", ("failed", "cancelled"))

    async def _queue_again(self, id: str, done: str, among: tuple[JobState, ...]) -> Job:
        def queue(folder: Path) -> None:
            place = self._index.next_place()
            runs.forget_wishes(folder)
            runs.forget_deaths(folder)
            update = {"state": "queued", "message": "", "finished_at": None, "place": place}
            runs.enter_state(folder, runs.read_status(folder).model_copy(update=update))
            self._index.change(id, among, "queued", place)

        return await self._change(id, done, among, queue)

    async def remove(self, id: str) -> None:
        """Take a job that is not going to run from the disk: its log, figures, samples and checkpoints. What it published stays.

        Raises:
            UnknownJob: there is no such job.
            Conflict: it is queued or running.
        """
        among: tuple[JobState, ...] = ("paused", *_ENDED)
        await self._ready()
        async with self.changing:
            await asyncio.to_thread(self._bring_together, id)
            await self._expect(id, "removed", among)
            if not await asyncio.to_thread(self._index.remove, id, among):
                raise Conflict(f"job {id} is in the queue again")
            hidden = await asyncio.to_thread(hide, self._folder / id)
        await asyncio.to_thread(shutil.rmtree, hidden)

    async def _change(self, id: str, done: str, among: tuple[JobState, ...], change: Callable[[Path], None]) -> Job:
        """Raises UnknownJob; Conflict, where what is to be done goes with other states than the job's."""
        await self._ready()
        async with self.changing:
            await asyncio.to_thread(self._bring_together, id)
            await self._expect(id, done, among)
            await asyncio.to_thread(change, self._folder / id)
            self._supervisor.wake()
        return await self.get(id)

    def _bring_together(self, id: str) -> None:
        """Where a change before this one failed halfway, its job is made whole first."""
        with suppress(ValueError, FileNotFoundError):  # damaged, which reading it will say
            reconcile_one(self._known(id), self._index)

    async def _expect(self, id: str, done: str, among: tuple[JobState, ...]) -> None:
        job = await self.get(id)
        if job.state not in among:
            raise Conflict(f"job {id} is {job.state}; a job can be {done} while it is {' or '.join(among)}")

    # --- reading ---

    async def folder(self, id: str) -> Path:
        """The directory of a job; raises UnknownJob."""
        await self._ready()
        return await asyncio.to_thread(self._known, id)

    def _known(self, id: str) -> Path:
        folder = self._folder / id
        if not is_name(id) or not (folder / runs.STATUS).is_file():  # no path is made of what is no id
            raise UnknownJob(f"there is no job {show(id)}; GET /jobs lists them")
        return folder

    def is_claimed(self, id: str) -> bool:
        """Whether a server works on it, and has not settled yet what its worker did. Blocks."""
        return _is_claimed(self._index.entry(id))

    def _read(self, id: str, positions: Mapping[str, int] | None = None) -> Job:
        folder = self._known(id)
        try:
            status = runs.read_status(folder)
        except (OSError, ValueError) as error:
            raise UnknownJob(f"job {id} is damaged: its {runs.STATUS} cannot be read; GET /jobs lists the others") from error
        entry = self._index.entry(id)
        if _is_claimed(entry) and status.state != "running":
            # its worker is not there yet; or it is done, and who reads "succeeded" may ask for the model, so that is served first
            status = status.model_copy(update={"state": "running", "finished_at": None})
        return Job(
            id=id,
            state=status.state,
            position=(self._index.positions() if positions is None else positions).get(id) if status.state == "queued" else None,
            priority=status.priority,
            progress=JobProgress(**status.progress.model_dump(), percent=round(status.progress.percent, 2)),
            attempts=status.attempts,
            message=status.message or ("asked to end" if status.state not in FINISHED and runs.is_cancel_asked(folder) else ""),
            log_end=_log_end(folder) if status.state == "failed" else None,
            findings=list(status.findings),
            model=status.model,
            version=status.version,
            created_at=status.created_at,
            started_at=status.started_at,
            finished_at=status.finished_at,
            config=_config(folder),
        )


def _is_claimed(entry: Entry | None) -> bool:
    return entry is not None and entry.state == "running"


def _request(key: str, config: TrainConfig) -> dict[str, JsonValue]:
    return {"key": key, "config": config.model_dump(mode="json", exclude_unset=True)}


def _log_end(folder: Path) -> str | None:
    try:
        return watching.log(folder, LOG_END_BYTES).decode(errors="replace")
    except UnknownJob:  # the log is gone, and the job is not
        return None


def _config(folder: Path) -> TrainConfig | None:
    try:
        return runs.read_config(folder)
    except (OSError, ValueError) as error:
        _log.warning("%s cannot be read: %s", folder / runs.CONFIG, error)
        return None
