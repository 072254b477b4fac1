"""A real server, for tests."""

import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
GANSERVE = str(Path(sys.executable).parent / "ganserve")
START_SECONDS = 60


class Server:
    """A real server process on a free port of loopback; `state` is its folder, and `log` all that it printed."""

    def __init__(self, state: Path, models: list[Path], *arguments: str, environment: dict[str, str] | None = None) -> None:
        state.mkdir(parents=True, exist_ok=True)
        self.state = state
        self.log = state / f"server-{len(list(state.glob('server-*.log')))}.log"
        command = [GANSERVE, "serve", "--port", "0", "--state", str(state)]
        for folder in models:
            command += ["--models", str(folder)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, *arguments], stdout=log, stderr=log, cwd=state, env=os.environ | {"GANSERVE_API_KEY": ""} | (environment or {})
            )
        self.url = self._wait()

    def _wait(self) -> str:
        """The address from the greeting, which is printed once the server is ready."""
        for _ in range(START_SECONDS * 20):
            for line in reversed(self.log.read_text().splitlines()):
                if line.startswith("ganserve listens on "):
                    return line.removeprefix("ganserve listens on ")
            try:
                self.process.wait(0.05)
            except subprocess.TimeoutExpired:
                continue
            break
        raise AssertionError(f"the server did not start:\n{self.log.read_text()}")

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, and wait for the end; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(60)
