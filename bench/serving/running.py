"""Servers as the benches start them: pinned to a core, on a port of their own, ended with all their children."""

import argparse
import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
HOST = "127.0.0.1"
START_SECONDS = 180.0
END_SECONDS = 30.0
_TICKS = os.sysconf("SC_CLK_TCK")


def options(doc: str | None, seconds: float) -> argparse.ArgumentParser:
    """The flags that the benches share; from now on the bench ends its servers where it is told to end itself.

    Args:
        seconds: of one measurement.
    """
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(143))
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=seconds, help="of one measurement; shorter only shows that the bench runs")
    parser.add_argument("--cache", type=Path, default=ROOT / "build" / "serving", help="folder of models that are made once")
    parser.add_argument("--server-core", type=int, default=0)
    parser.add_argument("--load-core", type=int, default=1)
    return parser


@dataclass(frozen=True)
class Server:
    """A running one."""

    process: subprocess.Popen[bytes]
    port: int
    started: float  # of time.perf_counter, before its process was

    def post(self, path: str, body: str, method: str = "POST") -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers by their names in small letters, body.

        Raises:
            OSError: nobody listens.
        """
        connection = http.client.HTTPConnection(HOST, self.port, timeout=START_SECONDS)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def get(self, path: str) -> tuple[int, bytes]:
        status, _, body = self.post(path, "", "GET")
        return status, body

    def cpu_seconds(self) -> float:
        """What it and its children have used of the processor."""
        return sum(sum(map(int, _stat(pid)[11:13])) for pid in _tree(self.process.pid)) / _TICKS

    def memory_mb(self) -> float:
        """Its and its children's, what they share counted once (PSS)."""
        return sum(_pss_kb(pid) for pid in _tree(self.process.pid)) / 1024

    def wait_for(self, path: str, body: str, every: float = 0.1) -> None:
        """Until it answers with 200.

        Raises:
            RuntimeError: it cannot be asked so, or as `wait_until` does.
        """

        def answers() -> bool:
            status, _, answer = self.post(path, body)
            if status in (400, 415, 422):
                raise RuntimeError(f"{path} is answered with {status}: {answer[:500]!r}")
            return status == 200

        self.wait_until(answers, every)

    def wait_until(self, ready: Callable[[], bool], every: float = 0.1) -> None:
        """Until `ready`, which may find nobody listening.

        Raises:
            RuntimeError: it ended, or took longer than START_SECONDS.
        """
        while time.perf_counter() - self.started < START_SECONDS:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended with {self.process.returncode}")
            try:
                if ready():
                    return
            except (OSError, http.client.HTTPException):
                pass
            time.sleep(every)
        raise RuntimeError(f"the server was not ready after {START_SECONDS:g} s")


@contextmanager
def serving(command: Sequence[str | Path], port: int, core: int, environment: Mapping[str, str] | None = None) -> Iterator[Server]:
    """Start it, and end it with everything that it started. What it printed is shown where this fails."""
    given = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "GANSERVE_API_KEY": ""}
    with TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("wb") as out:
            started = time.perf_counter()
            process = subprocess.Popen(
                [*pinned(core), *map(str, command)],
                cwd=folder,
                env=given | dict(environment or {}),
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            yield Server(process, port, started)
        except BaseException:
            print(log.read_text(errors="replace")[-4000:], file=sys.stderr)
            raise
        finally:
            _end(process)


@contextmanager
def ours(models: Path, core: int, *flags: str, variant: Sequence[str] = (), ready: bool = True) -> Iterator[Server]:
    """`ganserve serve` with one thread in the engine, since it has one core.

    Args:
        variant: parts that are exchanged, as `variants.py` calls them.
        ready: wait until every model is loaded; else it may not even listen yet.
    """
    port = free_port()
    start = [Path(sys.executable).parent / "ganserve"] if not variant else [sys.executable, HERE / "variants.py", *variant, "--"]
    with TemporaryDirectory() as state:
        command = [*start, "serve", "--port", str(port), "--models", models, "--state", state, "--threads", "1", *flags]
        with serving(command, port, core) as server:
            if ready:
                server.wait_until(lambda: server.get("/readyz")[0] == 200)
            yield server


def pinned(core: int) -> list[str]:
    """What stands before a command that is to have one core.

    Raises:
        SystemExit: one of the programs that the benches need is not here.
    """
    if missing := [name for name in ("taskset", "wrk") if shutil.which(name) is None]:
        raise SystemExit(f"{' and '.join(missing)} must be installed (Debian: apt-get install util-linux wrk)")
    return ["taskset", "-c", str(core)]


def pin(core: int) -> None:
    """This process, and what it starts."""
    os.sched_setaffinity(0, {core})


def table(*heads: str) -> str:
    """The first two lines of one."""
    return f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask it to end, then end whatever it has left behind, in sessions of their own too."""
    left = _tree(process.pid)
    process.terminate()
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pid, begun in left.items():
        try:
            if int(_stat(pid)[19]) == begun:  # the same process, and not another with its number
                os.kill(pid, signal.SIGKILL)
        except (ProcessLookupError, FileNotFoundError):
            continue


def _tree(root: int) -> dict[int, int]:
    """The process and all its descendants, with the moment at which each began."""
    parents: dict[int, tuple[int, int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                stat = _stat(int(folder.name))
            except (FileNotFoundError, ProcessLookupError):
                continue
            parents[int(folder.name)] = (int(stat[1]), int(stat[19]))
    found = {root: parents[root][1]} if root in parents else {}
    while more := {pid: begun for pid, (parent, begun) in parents.items() if parent in found and pid not in found}:
        found |= more
    return found


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third on, `state`: the second, the name, may hold spaces."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _pss_kb(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
