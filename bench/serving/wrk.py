"""wrk as the benches use it: so many connections, each of which asks again as soon as it is answered, from a core of its own."""

import json
import random
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from running import HOST, Server, pinned

SCRIPT = Path(__file__).parent / "request.lua"
LONGEST_SECONDS = 60


@dataclass(frozen=True)
class Load:
    """What one run saw. Latencies are of the requests that were answered."""

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    refused: int  # answers that are no success
    failed: int  # no answers

    @property
    def rate(self) -> float:
        """Requests a second that were answered with success."""
        return (self.requests - self.refused) / self.seconds

    def checked(self) -> "Load":
        """Itself.

        Raises:
            RuntimeError: a request was refused or failed, so the figures mean nothing.
        """
        if self.refused or self.failed or not self.requests:
            said = f"of {self.requests} requests in {self.seconds:.0f} s, {self.refused} were refused and {self.failed} failed"
            raise RuntimeError(said)
        return self


def start(server: Server, path: str, body: str, connections: int, seconds: float, core: int) -> "subprocess.Popen[str]":
    """
    Args:
        body: SEED in it is another number in each request.
    """
    flags = ["-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", f"--timeout={LONGEST_SECONDS}s", "-s", str(SCRIPT)]
    words = [f"http://{HOST}:{server.port}", "--", path, body, str(random.randrange(2**30))]  # noqa: S311
    return subprocess.Popen([*pinned(core), "wrk", *flags, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: "subprocess.Popen[str]") -> Load:
    """The result, when the run has come to its end."""
    printed, _ = process.communicate()
    with suppress(StopIteration):
        line = next(line for line in printed.splitlines() if line.startswith("RESULT "))
        return Load(**json.loads(line.removeprefix("RESULT ")))
    raise RuntimeError(f"wrk says: {printed.strip()}")


def run(server: Server, path: str, body: str, connections: int, seconds: float, core: int) -> Load:
    """Ask for some seconds, and say how it went."""
    return finish(start(server, path, body, connections, seconds, core))
