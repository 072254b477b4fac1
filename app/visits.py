"""One request on its way through the house, as far as every room must know of it: its deadline, its clock, and whom it asks.

The reception begins a visit and tells of it at its end; the batcher and the pools write down how long it stayed with them. It travels in a
context variable, so that routes need not carry it.
"""

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Literal

from training.contract import Manifest

# what a request waits for: a picture's pixels, its latents and other tensors, its turn, the networks, the bytes of its answer
Phase = Literal["decode", "prepare", "queue", "run", "encode"]
# why it went without: which room was full, or what else ended it
Refused = Literal["images", "bodies", "administration", "watchers", "uploads", "augmentations", "stopping", "deadline", "left", "slow-body"]

_WAIT = re.compile(r'(?:^|,)\s*wait\s*=\s*"?([0-9]{1,9})"?\s*(?:[,;]|$)', re.IGNORECASE)


@dataclass(eq=False)
class Visit:
    """What is known of one request.

    deadline_seconds: how long it may take once its body is here; None is for ever.
    preference: how the client asked for that deadline, where it did; `applied` once it is kept.
    parameter: the field of the body that asked for a shorter one in place of it.
    held: images that there is room for since it was admitted, and that have not been submitted; None before.
    """

    deadline_seconds: float | None = None
    preference: str | None = None
    applied: str | None = None
    parameter: str | None = None
    held: int | None = None
    began: float = field(default_factory=time.perf_counter)
    seconds: dict[Phase, float] = field(default_factory=dict)
    model: str = ""
    version: str = ""
    refused: Refused | None = None
    status: int = 500  # until an answer begins

    def asks(self, manifest: Manifest) -> None:
        """The version that is going to answer."""
        self.model, self.version = manifest.name, str(manifest.version)

    def shorten(self, seconds: float, parameter: str) -> None:
        """A field of the body asks for a deadline; a longer one is not granted."""
        if self.deadline_seconds is None or seconds < self.deadline_seconds:
            self.deadline_seconds, self.preference, self.parameter = seconds, None, parameter

    def spend(self, phase: Phase, seconds: float) -> None:
        self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds

    @contextmanager
    def spending(self, phase: Phase) -> Iterator[None]:
        """What the block takes belongs to the phase."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.spend(phase, time.perf_counter() - begin)

    @property
    def server_timing(self) -> str:
        """The header of that name, in milliseconds."""
        return ", ".join(f"{phase};dur={1000 * seconds:.3f}" for phase, seconds in self.seconds.items())


_current: ContextVar[Visit] = ContextVar("visit")


def current() -> Visit:
    """The visit of whoever calls; one that nobody tells of, where work is done for no request."""
    return _current.get(None) or Visit()


@contextmanager
def visiting(visit: Visit) -> Iterator[None]:
    """It is the current one in the block, and in every task that is begun there."""
    token = _current.set(visit)
    try:
        yield
    finally:
        _current.reset(token)


def deadline(preferences: Sequence[str], longest: float | None) -> tuple[float | None, str | None]:
    """Seconds that a request may take, and the preference that said so, where one did.

    Args:
        preferences: the values of its Prefer headers (RFC 7240): `wait=10` is a shorter deadline. A longer one is not granted, and what
            cannot be read is passed over, as the RFC has it; Preference-Applied tells a client which was the case.
    """
    found = _WAIT.search(", ".join(preferences))
    if found is None or (longest is not None and int(found[1]) > longest):
        return longest, None
    return int(found[1]), f"wait={int(found[1])}"
