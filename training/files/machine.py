"""What this machine lends to this process."""

import os
import resource
from pathlib import Path

_FIRST_TO_GO = Path("/proc/self/oom_score_adj")  # Linux alone


def num_training_threads() -> int:
    """One core is left to everything else: threads that wait for a taken core are many times slower than fewer threads."""
    return max(1, num_cores() - 1)


def num_cores() -> int:
    """Cores that this process may use: fewer than the machine has where it was pinned."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        return os.cpu_count() or 1


def memory_megabytes() -> int:
    """Of the machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 10**6


def limit_memory(megabytes: int | None) -> None:
    """Let this process fail with a sentence when it wants more, and be the first to go where the machine has none left for others.

    What is counted is what it may write to (RLIMIT_DATA): a GPU's library reserves addresses by the terabyte, which cost nothing.
    """
    if megabytes is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (megabytes * 10**6, megabytes * 10**6))
    if _FIRST_TO_GO.exists():
        _FIRST_TO_GO.write_text("700")
