"""Who works in a directory: a lock that the kernel frees when its holder dies, so neither a pid nor a clock is trusted."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from training.contract import UserError

LOCK = "lock"
_PATIENCE_SECONDS = 1.0  # `is_held` takes the lock for a moment; whoever means to work outlasts that


class LockedError(UserError):
    """Another process holds the directory's lock."""


@contextmanager
def hold(folder: Path, patience_seconds: float = _PATIENCE_SECONDS) -> Iterator[None]:
    """Hold the directory's lock to the end of the block; close-on-exec, so that no child inherits it.

    Raises:
        LockedError: another process holds it.
    """
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        if not _try_lock(descriptor, patience_seconds):
            raise LockedError(f"another process works in {folder}")
        yield
    finally:
        os.close(descriptor)


def is_held(folder: Path) -> bool:
    """Whether a living process holds the directory's lock."""
    if not (folder / LOCK).exists():
        return False
    try:
        with hold(folder, patience_seconds=0.0):
            return False
    except LockedError:
        return True


def _try_lock(descriptor: int, patience_seconds: float) -> bool:
    deadline = time.monotonic() + patience_seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.01)
        else:
            return True
