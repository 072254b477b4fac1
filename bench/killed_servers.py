"""Servers that are killed and come back, and their workers as the system knows them."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx

from training.files.locks import LOCK

ROOT = Path(__file__).parent.parent
HOST = "127.0.0.1"
READY_SECONDS = 120.0
_ready = httpx.Client()


class Server:
    """A node that is killed and comes back, on one port."""

    def __init__(self, folder: Path, node: str, database: str | None) -> None:
        self.url = f"http://{HOST}:{free_port()}"
        self._folder, self._node, self._database = folder, node, database
        self.seconds_to_ready: list[float] = []
        self.start()

    def launch(self) -> None:
        command = [sys.executable, "-m", "ganserve", "serve", "--port", self.url.rpartition(":")[2], "--state", str(self._folder / "state")]
        command += ["--models", str(self._folder / "models")]
        environment = os.environ | {"GANSERVE_NODE": self._node, "GANSERVE_API_KEY": "", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        if self._database:
            environment["GANSERVE_DATABASE_URL"] = self._database
        with (self._folder / f"{self._node}.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=self._folder)

    def start(self) -> None:
        """And wait until it answers."""
        begin = time.monotonic()
        self.launch()
        while time.monotonic() - begin < READY_SECONDS:
            try:
                if _ready.get(f"{self.url}/jobs", timeout=5).is_success:
                    self.seconds_to_ready.append(time.monotonic() - begin)
                    return
            except httpx.TransportError:
                if self.process.poll() is not None:
                    raise SystemExit(f"{self._node} did not start: {(self._folder / f'{self._node}.log').read_text()[-2000:]}") from None
            time.sleep(0.05)
        raise SystemExit(f"{self._node} was not ready within {READY_SECONDS} s")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> float:
        """How long an orderly end takes."""
        begin = time.monotonic()
        self.process.terminate()
        self.process.wait(60)
        return time.monotonic() - begin


def free_port() -> int:
    with socket.socket() as free:
        free.bind((HOST, 0))
        port: int = free.getsockname()[1]
        return port


def workers(folder: Path) -> dict[int, str]:
    """Process ids of the workers of our jobs, and the job of each."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if "training.worker" in words and any(word.startswith(str(folder)) for word in words):
            found[int(path.parent.name)] = Path(words[words.index("training.worker") + 1]).name
    return found


def is_at_work(process: int, job: Path) -> bool:
    """Whether a worker is past the start of its Python: it has the lock of its job's directory open, which it has or waits for."""
    try:
        return any(file.readlink() == job / LOCK for file in Path(f"/proc/{process}/fd").iterdir())
    except OSError:
        return False
