"""What this machine lends to this process."""

import os


def num_training_threads() -> int:
    """One core is left to everything else: threads that wait for a taken core are many times slower than fewer threads."""
    return max(1, num_cores() - 1)


def num_cores() -> int:
    """Cores that this process may use: fewer than the machine has where it was pinned."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        return os.cpu_count() or 1
