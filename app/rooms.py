"""How much of one class of work may be here at a time; whoever finds it full is told at once, and told when to come again."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from app import visits
from app.errors import Overloaded

_FULL = 15 / 16  # of the capacity: what has been full stays so to there
_LONGEST_WAIT = 60  # seconds that anybody is told to wait
_MEMORY = 0.8  # weight of the past in the measured speed, each time that something is done


class Room:
    """Used on one event loop, or behind a lock. Who comes alone is let in, however large: what is refused then would never be served."""

    def __init__(
        self, name: Literal["images", "bodies", "administration", "watchers", "uploads", "augmentations"], what: str, capacity: int
    ) -> None:
        """
        Args:
            what: as a message goes on after the amount: "images wait".
        """
        self.name = name
        self.capacity = capacity
        self.amount = 0
        self._is_full = False
        self._what = what
        self._done = (0.0, 0.0)  # amount and seconds, of late
        self._left = 0.0  # when somebody last did

    def enter(self, amount: int, held: int = 0) -> None:
        """
        Args:
            held: of what is here, how much came with the same one.

        Raises:
            Overloaded: there is not so much room.
        """
        if amount and self.amount > held and self.amount + amount > self.capacity:
            self._is_full = True
            raise self._refusal(f"{self.amount} {self._what} and {amount} more would pass the limit of {self.capacity}")
        self.admit(amount)

    def admit(self, amount: int) -> None:
        """Without asking whether there is room."""
        self.amount += amount

    def refuse_while_full(self) -> None:
        """For the door, where nobody knows yet how much is coming: once somebody found no room, all are refused until there is some again.

        Raises:
            Overloaded: before that.
        """
        self._is_full = self._is_full and self.amount > self.capacity * _FULL
        if self._is_full:
            raise self._refusal(f"{self.amount} {self._what}, and the limit is {self.capacity}")

    def leave(self, amount: int) -> None:
        self.amount -= amount

    def note(self, amount: int, seconds: float) -> None:
        """So much was done in so long: what the time to come again is computed from."""
        done, took = self._done
        self._done = (_MEMORY * done + amount, _MEMORY * took + seconds)

    @contextmanager
    def holding(self, amount: int) -> Iterator[Callable[[int], None]]:
        """Room for as long as the block takes, which is given a function to ask for more; both raise as `enter` does."""
        held = 0

        def hold(more: int) -> None:
            nonlocal held
            self.enter(more, held)
            held += more

        hold(amount)
        entered = time.perf_counter()
        try:
            yield hold
        finally:
            self.leave(held)
            if held:  # nothing in no time would fade what is known of the speed
                now = time.perf_counter()
                self.note(held, now - max(self._left, entered))  # those that are here together share the time
                self._left = now

    def _refusal(self, message: str) -> Overloaded:
        visits.current().refused = self.name
        wait = self._seconds_to_wait()
        return Overloaded(f"{message}; ask again in {wait} s", headers={"Retry-After": str(wait)})

    def _seconds_to_wait(self) -> int:
        done, took = self._done
        return math.ceil(min(max(1, self.amount * took / done), _LONGEST_WAIT)) if done else 1
