"""What happens to a job, as it happens: server-sent events, of which none is missed and none told twice.

The documents of `state`, `sample` and `rewound` are those of training/files/events.py, which writes them where there is Unix.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import httpx
from pydantic import BaseModel

from app.client.errors import no_answer, refusal
from app.client.steps import SECONDS_AFTER_LOSS, SECONDS_WITHOUT_SERVER, Call
from training.contract import Finding, JobState, Metrics, Progress

Kind = Literal["state", "metrics", "sample", "finding", "rewound", "progress"]


class State(BaseModel):
    """How a job stands from now on."""

    state: JobState
    message: str
    attempts: int
    images: int
    total_images: int
    model: str | None
    version: int | None


class At(BaseModel):
    """Of `sample`: a grid was drawn after so many images. Of `rewound`: the job goes on from there, and what came after comes again."""

    images: int


_DATA: Mapping[Kind, type[BaseModel]] = {
    "state": State,
    "metrics": Metrics,
    "sample": At,
    "finding": Finding,
    "rewound": At,
    "progress": Progress,
}


@dataclass(frozen=True)
class Event:
    """Something that happened, and when. `number` counts from 1 without a gap; progress, which is told now and then, has none."""

    number: int | None
    kind: Kind
    at: str | None
    data: State | Metrics | At | Finding | Progress


class _Stamp(BaseModel):
    at: str | None = None


class Feed:
    """The events of one job behind a number: what to ask for, and what the lines of the answer say. Kinds that are not known here, of a
    newer server, are passed over."""

    def __init__(self, job: str, after: int) -> None:
        """
        Args:
            job: the path of it.
        """
        self.is_over = False
        self._path = f"{job}/events"
        self._seen = after
        self._rest_seconds = SECONDS_AFTER_LOSS
        self._rested_seconds = 0.0  # since anything was heard
        self._fields: dict[str, str] = {}

    @property
    def call(self) -> Call:
        return Call("GET", self._path, headers={"Accept": "text/event-stream", "Last-Event-ID": str(self._seen)})

    def begin(self, response: httpx.Response) -> None:
        """Its lines come next; a refusal, which has been read, is raised."""
        self._fields = {}
        if not response.is_success:
            raise refusal(response)

    def take(self, line: str) -> Event | None:
        """A line of the stream without its end, and the event that it completes. Source: the HTML standard, 9.2.6."""
        self._rested_seconds = 0.0
        if line:
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            self._fields[name] = f"{self._fields[name]}\n{value}" if name == "data" and "data" in self._fields else value
            return None
        fields, self._fields = self._fields, {}
        if fields.get("retry", "").isdecimal():
            self._rest_seconds = int(fields["retry"]) / 1000
        number = int(fields["id"]) if fields.get("id", "").isdecimal() else None
        self._seen = self._seen if number is None else number
        self.is_over = fields.get("event") == "end"
        kind = next((kind for kind in get_args(Kind) if kind == fields.get("event")), None)
        if kind is None or "data" not in fields:
            return None
        at = _Stamp.model_validate_json(fields["data"]).at
        return Event(number, kind, at, _DATA[kind].model_validate_json(fields["data"], extra="ignore"))  # type: ignore[arg-type]

    def rest(self, error: httpx.TransportError | None) -> float:
        """Seconds until it is asked again, after the stream has ended; raises NoAnswer where nothing has been heard for long."""
        if error is not None and self._rested_seconds >= SECONDS_WITHOUT_SERVER:
            raise no_answer(error) from error
        self._rested_seconds += self._rest_seconds
        return self._rest_seconds
