"""Training jobs: submit, watch, cancel, recover. One worker process at a time, spawned, in a session and a directory of its own.

The job's directory is the truth (training.files.runs); what is kept here can be lost at any moment and found again.
"""

import asyncio
import json
import logging
import shutil
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from pydantic import JsonValue

from app.errors import Conflict, FieldError, Invalid, NotServed, UnknownJob, show
from app.schemas.training import Job, JobProgress, Jobs
from app.workers import WorkerError, WorkerSettings
from training import catalog
from training.contract import FINISHED, JobState, JobStatus, TrainConfig, is_name, now
from training.files import locks, runs
from training.files.directories import hide

STOPPED = 75  # the worker's exit code when it was asked to stop and can go on later
MAX_DEATHS = 3  # of one job's worker, with no checkpoint between them, before it is called a crash loop
ADOPTED_POLL_SECONDS = 0.5  # a worker that another server started is no child: its lock is looked at
TERMINATE_SECONDS = 20.0  # for a last checkpoint
_log = logging.getLogger(__name__)


class JobService:
    """The queue and its one worker. `on_published` is awaited with the name of what a job published, so that it is served."""

    def __init__(self, folder: Path, worker: WorkerSettings, on_published: Callable[[str], Awaitable[None]]) -> None:
        self._folder, self._worker, self._on_published = folder, worker, on_published
        self._queue: list[str] = []
        self._submitting = asyncio.Lock()
        self._wake = asyncio.Event()
        self._current: str | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._deaths: dict[str, tuple[int, int]] = {}  # by job: images at the checkpoint that is gone back to, and deaths since
        self._closing = False
        self._task: asyncio.Task[None] | None = None

    # --- life ---

    async def start(self) -> None:
        """Find the jobs that are not finished, and go on with them."""
        self._folder.mkdir(parents=True, exist_ok=True)
        found = await asyncio.to_thread(self._read_all)
        # a worker that outlived the server before this one comes first: nothing may start beside it
        waiting = [id for id, status in found.items() if status.state not in {*FINISHED, "paused"}]
        for id in [id for id in waiting if runs.is_pause_asked(self._folder / id) and not self._is_alive(id)]:
            self._park(id)  # the server before this one could not
            waiting.remove(id)
        self._queue = sorted(waiting, key=lambda id: (not self._is_alive(id), id))
        self._task = asyncio.create_task(self._work())
        self._wake.set()

    async def close(self) -> None:
        """Ask the worker for a checkpoint, and wait for it; the job goes on at the next start."""
        self._closing = True
        self._wake.set()
        if self._process is not None:
            self._terminate(self._process)
        elif self._current is not None:
            runs.ask_to_stop(self._folder / self._current)  # an adopted worker is no child: it looks for the wish itself
        if self._task is not None:
            try:
                await asyncio.wait_for(self._task, TERMINATE_SECONDS)
            except TimeoutError:
                _log.warning("the worker did not stop within %s s and is killed", TERMINATE_SECONDS)
                if self._process is not None:
                    self._process.kill()

    # --- what routes ask ---

    async def submit(self, config: TrainConfig, key: str | None = None) -> Job:
        """Check the config against its data, make the job durable, and queue it.

        Args:
            key: the client's own name for this request. A job that it made before is the answer, as long as that is there.

        Raises:
            Invalid: the config cannot be run; every reason with its field. Or the key was used for another config.
            NotServed: this process has no trainer.
        """
        async with self._submitting:  # of two requests with one key, the second finds the first one's job
            id = None if key is None else await asyncio.to_thread(self._made_by, key, config)
            if id is None:
                id = runs.new_id()
                await asyncio.to_thread(self._create, id, config, key)
                self._queue.append(id)
                self._wake.set()
        return await self.get(id)

    def _made_by(self, key: str, config: TrainConfig) -> str | None:
        """The job that a request with this key has made."""
        for path in self._paths():
            asked = _asked(path)
            if asked == _request(key, config):
                return path.name
            if asked is not None and asked["key"] == key:
                raise Invalid(
                    f"the Idempotency-Key {show(key)} was sent with another config, for job {path.name}; a new request wants a new key"
                )
        return None

    def _create(self, id: str, config: TrainConfig, key: str | None) -> None:
        try:
            resolved = catalog.resolve(config, self._worker.datasets, self._worker.repositories, self._worker.weights)
        except catalog.ConfigError as error:
            fields = tuple(FieldError(pointer=pointer, message=message) for pointer, message in error.errors)
            raise Invalid(str(error), errors=fields) from error
        except ImportError as error:
            raise NotServed(f"this process serves only; it has no {error.name}") from error
        runs.create(self._folder / id, resolved, id, None if key is None else json.dumps(_request(key, config)).encode())

    async def get(self, id: str) -> Job:
        """Raises UnknownJob."""
        return await asyncio.to_thread(self._read, id)

    def newest_id(self) -> str | None:
        return max((path.name for path in self._paths()), default=None)

    async def page(self, limit: int, after: str | None) -> Jobs:
        """Jobs, newest first, from the one behind `after` on."""
        ids = await asyncio.to_thread(lambda: sorted((path.name for path in self._paths()), reverse=True))
        page = [id for id in ids if after is None or id < after]
        jobs = []
        for id in page[:limit]:
            with suppress(UnknownJob):  # damaged, or removed at this moment
                jobs.append(await self.get(id))
        return Jobs(jobs=jobs, next=page[limit - 1] if len(page) > limit else None)

    async def cancel(self, id: str) -> Job:
        """Leave the wish to end; a queued or paused job ends at once, a running one at its worker's next beat.

        Raises:
            UnknownJob: there is no such job.
            Conflict: it is finished.
        """
        job = await self._expect(id, "cancelled", "queued", "running", "paused")
        runs.ask_to_cancel(self._folder / id)
        if id in self._queue:
            self._queue.remove(id)
            self._end(id)
        elif job.state == "paused":
            self._end(id)
        return await self.get(id)

    async def pause(self, id: str) -> Job:
        """A queued job waits from now on, a running one once its worker has kept a checkpoint; until `resume`.

        Raises:
            UnknownJob: there is no such job.
            Conflict: it is paused or finished.
        """
        await self._expect(id, "paused", "queued", "running")
        runs.ask_to_pause(self._folder / id)
        if id in self._queue:
            self._queue.remove(id)
            self._park(id)
        return await self.get(id)

    async def resume(self, id: str) -> Job:
        """Put a paused job at the end of the queue; it goes on from its last checkpoint. Raises as `pause` does."""
        return await self._queue_again(id, "resumed", "paused")

    async def retry(self, id: str) -> Job:
        """Put a failed or cancelled job at the end of the queue; it goes on from its last checkpoint. Raises as `pause` does."""
        return await self._queue_again(id, "retried", "failed", "cancelled")

    async def remove(self, id: str) -> None:
        """Take a job that is not going to run from the disk: its log, figures, samples and checkpoints. What it published stays.

        Raises:
            UnknownJob: there is no such job.
            Conflict: it is queued or running.
        """
        await self._expect(id, "removed", "paused", "succeeded", "failed", "cancelled")
        if id in self._queue or id == self._current:  # somebody else was faster
            raise Conflict(f"job {id} is in the queue again")
        hidden = hide(self._known(id))
        await asyncio.to_thread(shutil.rmtree, hidden)

    async def _expect(self, id: str, done: str, *states: JobState) -> Job:
        """Raises UnknownJob; Conflict, where what is to be done goes with other states than the job's."""
        job = await self.get(id)
        if job.state not in states:
            raise Conflict(f"job {id} is {job.state}; a job can be {done} while it is {' or '.join(states)}")
        return job

    async def _queue_again(self, id: str, done: str, *states: JobState) -> Job:
        await self._expect(id, done, *states)
        folder = self._known(id)
        if id in self._queue or id == self._current:  # somebody else was faster
            raise Conflict(f"job {id} is in the queue already")
        if self._task is None and locks.is_held(self._folder):
            raise Conflict(f"another server works on {self._folder.parent}, and would not hear of it: ask that one")
        runs.forget_wishes(folder)
        status = runs.read_status(folder)
        runs.write_status(folder, status.model_copy(update={"state": "queued", "message": "", "finished_at": None}))
        self._deaths.pop(id, None)
        self._queue.append(id)
        self._wake.set()
        return await self.get(id)

    def _park(self, id: str) -> None:
        """The wish to pause is fulfilled."""
        folder = self._folder / id
        status = runs.read_status(folder)
        runs.write_status(folder, status.model_copy(update={"state": "paused", "message": f"paused {_when(status)}"}))
        runs.forget_wishes(folder)

    def _end(self, id: str) -> None:
        """The wish to cancel is fulfilled, where no worker is there to do so."""
        self._finish(id, "cancelled", f"cancelled {_when(runs.read_status(self._folder / id))}")

    # --- reading ---

    async def folder(self, id: str) -> Path:
        """The directory of a job; raises UnknownJob."""
        return await asyncio.to_thread(self._known, id)

    def _known(self, id: str) -> Path:
        folder = self._folder / id
        if not is_name(id) or not (folder / runs.STATUS).is_file():  # no path is made of what is no id
            raise UnknownJob(f"there is no job {show(id)}; GET /jobs lists them")
        return folder

    def _paths(self) -> list[Path]:
        return [path for path in self._folder.iterdir() if (path / runs.STATUS).is_file()] if self._folder.is_dir() else []

    def _read_all(self) -> dict[str, JobStatus]:
        found = {}
        for path in self._paths():
            try:
                found[path.name] = runs.read_status(path)
            except (OSError, ValueError) as error:
                _log.warning("job %s cannot be read and is left out: %s", path.name, error)
        return found

    def _read(self, id: str) -> Job:
        folder = self._known(id)
        try:
            status = runs.read_status(folder)
        except (OSError, ValueError) as error:
            raise UnknownJob(f"job {id} is damaged: its {runs.STATUS} cannot be read; GET /jobs lists the others") from error
        if id == self._current and status.state in FINISHED:
            # who reads "succeeded" may ask for the model at once, so it is not said before the model is served
            status = status.model_copy(update={"state": "running", "finished_at": None})
        return Job(
            id=id,
            state=status.state,
            position=self._queue.index(id) + 1 if id in self._queue else None,
            progress=JobProgress(**status.progress.model_dump(), percent=round(status.progress.percent, 2)),
            attempts=status.attempts,
            message=status.message or ("asked to end" if status.state not in FINISHED and runs.is_cancel_asked(folder) else ""),
            findings=list(status.findings),
            model=status.model,
            version=status.version,
            created_at=status.created_at,
            started_at=status.started_at,
            finished_at=status.finished_at,
            config=_config(folder),
        )

    def _is_alive(self, id: str) -> bool:
        return locks.is_held(self._folder / id)

    # --- working ---

    async def _work(self) -> None:
        while not self._closing:
            if not self._queue:
                self._wake.clear()
                await self._wake.wait()
                continue
            id = self._current = self._queue.pop(0)
            try:
                code = await self._adopt(id) if self._is_alive(id) else await self._run(id)
                await self._settle(id, code)
            except (OSError, ValueError):  # its directory is damaged or the disk is; the other jobs go on
                _log.exception("job %s is left as it is, and tried again when the server starts", id)
            self._current = None

    async def _adopt(self, id: str) -> int | None:
        """Wait for the end of a worker that is no child, and so has no exit code for us."""
        _log.info("job %s: its worker is alive; watching it", id)
        while await asyncio.to_thread(self._is_alive, id):
            await asyncio.sleep(ADOPTED_POLL_SECONDS)
        return None

    async def _run(self, id: str) -> int:
        """Start a worker and wait for its end; its exit code."""
        try:
            self._process = await self._worker.start(self._folder / id)
        except WorkerError as error:
            self._finish(id, "failed", f"its worker cannot be started: {error}; ask for the same training again")
            return 1
        _log.info("job %s: worker %s started", id, self._process.pid)
        if self._closing:
            self._terminate(self._process)
        code = await self._process.wait()
        _log.info("job %s: worker ended with %s", id, code)
        self._process = None
        return code

    async def _settle(self, id: str, code: int | None) -> None:
        """After a worker: its model is served, or its job queued again, or called a crash loop."""
        status = runs.read_status(self._folder / id)
        if status.state in FINISHED:
            if status.model is not None:
                await self._on_published(status.model)
            return
        if runs.is_cancel_asked(self._folder / id):
            self._end(id)
            return
        if runs.is_pause_asked(self._folder / id):
            self._park(id)
            return
        if self._closing:
            return
        images, deaths = self._deaths.get(id, (-1, 0))
        kept = runs.checkpoint_images(self._folder / id)
        deaths = deaths + 1 if images == kept else 1
        self._deaths[id] = (kept, deaths)
        died = status.state == "running" or code not in (None, STOPPED)  # the second, before it could say anything
        if died and deaths >= MAX_DEATHS:
            self._finish(id, "failed", f"crash loop: its worker died {deaths} times without a new checkpoint; {runs.LOG} may say why")
            return
        message = status.message or "its worker died; it goes on from its last checkpoint"
        runs.write_status(self._folder / id, status.model_copy(update={"state": "queued", "message": message}))
        self._queue.insert(0, id)

    def _finish(self, id: str, state: str, message: str) -> None:
        status = runs.read_status(self._folder / id)
        update = {"state": state, "message": message, "finished_at": now()}
        runs.write_status(self._folder / id, status.model_copy(update=update))

    def check_alive(self) -> None:
        """Raise what ended the queue, if anything has: that is a bug, and whoever looks after the server must see it."""
        if self._task is not None and self._task.done() and not self._closing:
            self._task.result()

    def _terminate(self, process: asyncio.subprocess.Process) -> None:
        try:
            process.terminate()
        except ProcessLookupError:
            _log.debug("the worker had ended already")


def _request(key: str, config: TrainConfig) -> dict[str, JsonValue]:
    return {"key": key, "config": config.model_dump(mode="json", exclude_unset=True)}


def _asked(folder: Path) -> dict[str, JsonValue] | None:
    """The request that a job was made by, where it had a key."""
    try:
        asked: dict[str, JsonValue] = json.loads((folder / runs.REQUEST).read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        _log.warning("%s cannot be read: %s", folder / runs.REQUEST, error)
        return None
    return asked


def _when(status: JobStatus) -> str:
    seen = status.progress.images
    return f"after {seen:,} of {status.progress.total_images:,} images" if seen else "before it started"


def _config(folder: Path) -> TrainConfig | None:
    try:
        return runs.read_config(folder)
    except (OSError, ValueError) as error:
        _log.warning("%s cannot be read: %s", folder / runs.CONFIG, error)
        return None
