"""A job's events as they happen, for who stays connected: what its directory keeps (training.files.events), and how far it is."""

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from fastapi.sse import ServerSentEvent

from app.errors import FieldError, IndexUnavailable, Invalid
from app.jobs import JobService
from training.contract import FINISHED, JobStatus
from training.files import events, runs

SECONDS_BETWEEN_LOOKS = 0.5
_log = logging.getLogger(__name__)
MAX_WATCHERS = 256


@dataclass(frozen=True)
class Watch:
    """One client's."""

    id: str
    folder: Path
    reader: events.Reader
    jobs: JobService
    stopping: asyncio.Event

    @classmethod
    async def of(cls, id: str, jobs: JobService, stopping: asyncio.Event, after: int) -> "Watch":
        """
        Args:
            stopping: set when the server is about to end.
            after: how many events the client has seen.

        Raises:
            UnknownJob: there is no such job.
            Invalid: it has not had so many.
        """
        folder = await jobs.folder(id)
        if after > (known := await asyncio.to_thread(events.count, folder)):
            message = f"job {id} has had {known} events, and none of number {after}: give at most {known}, or 0 for all of them"
            raise Invalid(message, errors=(FieldError(pointer="/Last-Event-ID", message=message),))
        return cls(id, folder, events.Reader(folder, after), jobs, stopping)

    async def __aiter__(self) -> AsyncIterator[ServerSentEvent]:
        told: JobStatus | None = None
        while not self.stopping.is_set():
            status, is_over, found = await asyncio.to_thread(self._look)
            for number, event in found:
                yield ServerSentEvent(event=event.event, id=str(number), data={"at": event.at, **event.data})
            if is_over:
                yield ServerSentEvent(event="end", data={})
                return
            if status is not None and status.state == "running" and (told is None or told.progress != status.progress):
                yield ServerSentEvent(event="progress", data=status.progress)
                told = status
            await self._rest()
        yield ServerSentEvent(event="shutdown", data={})

    def _look(self) -> tuple[JobStatus | None, bool, list[tuple[int, events.Event]]]:
        """How the job stands, whether that is all there will be, and what has happened since the last look.

        Of a job that is over the last word waits until the server is done with it: who hears that it has succeeded may ask for the model.
        """
        try:
            status = runs.read_status(self.folder)
            is_over = status.state in FINISHED and not self.jobs.is_claimed(self.id)
            if is_over:
                events.tell_state(self.folder, status)  # whoever ended the job may be about to
            return status, is_over, self.reader.read(but_the_end=not is_over)
        except (FileNotFoundError, ValueError):  # it was removed meanwhile, or is damaged: there will be no more
            return None, True, []
        except (OSError, IndexUnavailable) as error:
            _log.warning("job %s cannot be watched just now: %s", self.id, error)
            return None, False, []

    async def _rest(self) -> None:
        try:
            await asyncio.wait_for(self.stopping.wait(), SECONDS_BETWEEN_LOOKS)
        except TimeoutError:
            return
