"""What happened to a run, in order: `events.jsonl` in its directory, which only ever grows. The number of a line is the event's number.

state     how the run stands now: its state and message, attempts, images, and the version that it published
metrics   a line of metrics.jsonl
sample    a grid of the fixed latents was drawn, after so many `images`
finding   something goes wrong
rewound   the run goes on from a checkpoint at so many `images`: metrics and findings of more count no longer, and come again
"""

import fcntl
import os
from pathlib import Path
from typing import BinaryIO, Literal, TypeVar

from pydantic import BaseModel, JsonValue

from training.contract import FINISHED, Document, JobState, JobStatus, now

EVENTS = "events.jsonl"
Kind = Literal["state", "metrics", "sample", "finding", "rewound"]


class Event(Document):
    """One line."""

    event: Kind
    at: str
    data: dict[str, JsonValue]


class StateData(Document):
    """The data of `state`."""

    state: JobState
    message: str
    attempts: int
    images: int
    total_images: int
    model: str | None
    version: int | None


class ImagesData(Document):
    """The data of `sample` and `rewound`."""

    images: int


Data = TypeVar("Data", bound=BaseModel)


def append(folder: Path, kind: Kind, data: BaseModel) -> None:
    """Write an event down. Several may write: the worker, the service, and the worker of an attempt that is not known to be over."""
    with (folder / EVENTS).open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        _append(file, kind, data)


def _append(file: BinaryIO, kind: Kind, data: BaseModel) -> None:
    _drop_torn_line(file)
    event = Event(event=kind, at=now(), data=data.model_dump(mode="json"))
    file.write(event.model_dump_json().encode() + b"\n")
    file.flush()
    if kind == "state":  # what came between two of them is made again by who goes on after a power cut
        os.fsync(file.fileno())


def _drop_torn_line(file: BinaryIO) -> None:
    """What a dead process began to write; nobody was told of it, since readers take whole lines."""
    size = end = file.seek(0, os.SEEK_END)
    while end:
        begin = max(0, end - 65536)
        file.seek(begin)
        newline = file.read(end - begin).rfind(b"\n")
        if newline >= 0:
            end = begin + newline + 1
            break
        end = begin
    if end < size:
        file.truncate(end)


def tell_state(folder: Path, status: JobStatus) -> None:
    """Write down how the run stands, unless the last event of that kind says so already: who dies between the two is made up for."""
    progress = status.progress
    data = StateData(
        state=status.state,
        message=status.message,
        attempts=status.attempts,
        images=progress.images,
        total_images=progress.total_images,
        model=status.model,
        version=status.version,
    )
    with (folder / EVENTS).open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        told = None
        file.seek(0)
        for line in file:
            if line.startswith(b'{"event":"state"') and line.endswith(b"\n"):
                told = Event.model_validate_json(line).data
        if told is None or any(told[name] != getattr(data, name) for name in ("state", "message", "attempts", "model", "version")):
            _append(file, "state", data)


class Reader:
    """The events of a run behind a number, as they are written."""

    def __init__(self, folder: Path, after: int = 0) -> None:
        """
        Args:
            after: how many the reader has seen already.
        """
        self._path = folder / EVENTS
        self._after, self._num_read, self._offset = after, 0, 0

    def read(self, *, but_the_end: bool = False) -> list[tuple[int, Event]]:
        """What has come since, each with its number, from 1.

        Args:
            but_the_end: where the last one says that the run is over, leave it for another time.

        Raises:
            OSError, ValueError: the file cannot be read, or holds something else.
        """
        found: list[tuple[int, Event]] = []
        if not self._path.exists():
            return found  # made by the first event; a run from before there were events has none
        with self._path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break  # it is being written
                self._offset += len(line)
                self._num_read += 1
                if self._num_read > self._after:
                    found.append((self._num_read, Event.model_validate_json(line)))
                    last = line
        if found and but_the_end and found[-1][1].data.get("state") in FINISHED:
            found.pop()
            self._offset -= len(last)
            self._num_read -= 1
        return found


def count(folder: Path) -> int:
    """How many there are."""
    path = folder / EVENTS
    return path.read_bytes().count(b"\n") if path.exists() else 0
