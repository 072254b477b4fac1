"""How a job's worker is started: a process of its own, in a session of its own, behind the threads that answer requests."""

import asyncio
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from training.files import imports, runs
from training.files.machine import num_training_threads


class WorkerError(Exception):
    """It cannot be started; the message is the system's."""


@dataclass(frozen=True)
class WorkerSettings:
    """How workers run: where data and models lie, with how many threads (one core is left to the service) and how much memory.

    device_memory_share: what a worker may take of its GPU's memory, where the service has models on the same one.
    """

    datasets: Path
    weights: Path
    repositories: tuple[Path, ...]
    digests: Path
    threads: int = num_training_threads()
    keep_versions: int | None = None  # of a model that is published
    niceness: int = 15  # well behind the threads that answer requests
    memory_megabytes: int | None = None
    device_memory_share: float | None = None

    async def start(self, folder: Path, device: str, attempt: int) -> asyncio.subprocess.Process:
        """A worker for a run directory and the attempt that was granted there; what it prints goes into the run's log.

        Raises:
            OSError: the directory is gone, or its log cannot be written.
            WorkerError: the system starts no process.
        """
        folder = folder.resolve()
        command = [sys.executable, "-m", "training.worker", str(folder), "--datasets", str(self.datasets.resolve())]
        command += ["--weights", str(self.weights.resolve()), "--digests", str(self.digests.resolve())]
        for repository in self.repositories:
            command += ["--repository", str(repository.resolve())]
        if self.keep_versions is not None:
            command += ["--keep-versions", str(self.keep_versions)]
        command += ["--device", device, "--threads", str(self.threads), "--nice", str(self.niceness), "--attempt", str(attempt)]
        if self.memory_megabytes is not None:
            command += ["--memory-megabytes", str(self.memory_megabytes)]
        if self.device_memory_share is not None:
            command += ["--device-memory-share", str(self.device_memory_share)]
        return await _spawn(command, folder / runs.LOG, self.threads)


async def start_import(folder: Path, datasets: Path) -> asyncio.subprocess.Process:
    """A worker for the directory of an import, behind all else on one thread; raises as `WorkerSettings.start` does."""
    command = [sys.executable, "-m", "training.dataset_worker", str(folder.resolve()), "--datasets", str(datasets.resolve())]
    return await _spawn([*command, "--nice", str(WorkerSettings.niceness)], folder / imports.LOG, 1)


async def _spawn(command: Sequence[str], log: Path, threads: int) -> asyncio.subprocess.Process:
    with log.open("ab") as said:
        # a session of its own: a Ctrl-C in the server's terminal is the server's, which asks for a checkpoint
        try:
            return await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                start_new_session=True,
                env=os.environ | {"OMP_NUM_THREADS": str(threads)},
            )
        except OSError as error:
            raise WorkerError(error.strerror) from error
