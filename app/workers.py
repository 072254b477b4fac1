"""How a job's worker is started: a process of its own, in a session of its own, behind the threads that answer requests."""

import asyncio
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from training.files import runs
from training.files.machine import num_training_threads


class WorkerError(Exception):
    """It cannot be started; the message is the system's."""


@dataclass(frozen=True)
class WorkerSettings:
    """How workers run: where data and models lie, on what device, and with how many threads (one core is left to the service)."""

    datasets: Path
    weights: Path
    repositories: tuple[Path, ...]
    device: str
    threads: int = num_training_threads()
    niceness: int = 15  # well behind the threads that answer requests

    async def start(self, folder: Path) -> asyncio.subprocess.Process:
        """A worker for a run directory; what it prints goes into the run's log.

        Raises:
            OSError: the directory is gone, or its log cannot be written.
            WorkerError: the system starts no process.
        """
        folder = folder.resolve()
        command = [sys.executable, "-m", "training.worker", str(folder), "--datasets", str(self.datasets.resolve())]
        command += ["--weights", str(self.weights.resolve())]
        for repository in self.repositories:
            command += ["--repository", str(repository.resolve())]
        command += ["--device", self.device, "--threads", str(self.threads), "--nice", str(self.niceness)]
        with (folder / runs.LOG).open("ab") as log:
            # a session of its own: a Ctrl-C in the server's terminal is the server's, which asks for a checkpoint
            try:
                return await asyncio.create_subprocess_exec(
                    *command,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    env=os.environ | {"OMP_NUM_THREADS": str(self.threads)},
                )
            except OSError as error:
                raise WorkerError(error.strerror) from error
