"""`ganserve bench`: what a server answers, measured from outside, with connections that ask again as soon as they are answered."""

import http.client
import itertools
import json
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated
from urllib.parse import urlsplit

import httpx
from cyclopts import Parameter

from ganserve.connection import Connection, check, wait_until_loaded
from ganserve.places import settings
from training.contract import UserError

WARM_UP_SECONDS = 0.5
TIMEOUT_SECONDS = 120
HEADINGS = ("connections", "requests/s", "images/s", "median ms", "p95", "p99", "queue ms", "run", "encode", "other answers")


def bench(
    models: Annotated[tuple[str, ...], Parameter(help="Models to sample from; every one that can be sampled when left out.")] = (),
    /,
    *,
    num_images: Annotated[int, Parameter(name=["--num-images", "-n"], help="Images a request, in one PNG; 1 to 256.")] = 16,
    connections: Annotated[tuple[int, ...], Parameter(consume_multiple=True, help="How many ask at once, each number a row.")] = (1, 8, 32),
    seconds: Annotated[float, Parameter(help="Of each row.")] = 3.0,
    connection: Connection = Connection(),
) -> None:
    """Measure a running server, or one that is started for it: requests and images a second, and how long an answer takes.

    Server and connections share this machine unless --server names another: on few cores, the connections take their part.
    """
    if not 1 <= num_images <= 256 or not connections or min(connections) < 1 or not seconds > 0:
        raise UserError("--num-images must be 1 to 256, --connections at least 1 each, and --seconds more than 0")
    with _server(connection) as address:
        names = _sampled(Connection(server=address).ask(_cards), models)
        key = settings((), None).api_key
        for name in names:
            print(f"{name}, {num_images} images a request")
            print("  ".join(HEADINGS))
            for number in connections:
                load = _Load(address, key, {"model": name, "num_images": num_images})
                load.run(number, WARM_UP_SECONDS)
                load.clear()
                load.run(number, seconds)
                print(load.row(number, num_images), flush=True)


@contextmanager
def _server(connection: Connection) -> Iterator[str]:
    """The address of the server that is measured; one that was started for it ends with it."""
    if connection.server is not None:
        yield connection.server
        return
    found = settings(connection.models, connection.state, connection.device, connection.threads)
    words = [sys.executable, "-m", "ganserve", "serve", "--host", "127.0.0.1", "--port", "0", "--state", str(found.state)]
    words += [*("--models", *map(str, found.models)), "--device", found.device]
    words += ["--threads", str(found.threads)] if found.threads else []
    with tempfile.TemporaryFile("w+") as log, subprocess.Popen(words, stdout=subprocess.PIPE, stderr=log, text=True) as process:  # noqa: S603 - ourselves
        assert process.stdout is not None
        try:
            greeting = re.search(r"http://\S+", process.stdout.readline())
            if greeting is None:
                process.wait()
                log.seek(0)
                raise UserError(f"no server could be started: {log.read().strip().splitlines()[-1].removeprefix('ganserve: ')}")
            yield greeting[0]
        finally:
            process.send_signal(signal.SIGTERM)


async def _cards(client: httpx.AsyncClient) -> list[dict[str, object]]:
    """What is served, once all of it is loaded: loading would be measured too."""
    await wait_until_loaded(client)
    cards: list[dict[str, object]] = check(await client.get("/models")).json()["models"]
    return cards


def _sampled(cards: Sequence[dict[str, object]], asked: Sequence[str]) -> Sequence[str]:
    known = [str(card["name"]) for card in cards if not card["transforms"]]
    if unknown := [name for name in asked if name not in known]:
        raise UserError(f"there is no model {unknown[0]!r} to sample from; there are: {', '.join(known) or 'none'}")
    if not known:
        raise UserError("there is no model to sample from here; train one with `ganserve train`")
    return asked or known


@dataclass
class _Load:
    """Connections that ask, and what they were answered."""

    address: str
    key: str | None
    body: dict[str, object]
    milliseconds: list[float] = field(default_factory=list)
    stages: list[dict[str, float]] = field(default_factory=list)
    others: Counter[int] = field(default_factory=Counter)
    elapsed_seconds: float = 0.0

    def clear(self) -> None:
        self.milliseconds, self.stages, self.others = [], [], Counter()

    def run(self, num_connections: int, seconds: float) -> None:
        """Ask for so long, and wait for what has been asked.

        Raises:
            UserError: a connection broke.
        """
        seeds, broken = itertools.count(), list[Exception]()
        begin = time.perf_counter()

        def ask() -> None:
            try:
                self._ask(seeds, begin + seconds)
            except (OSError, http.client.HTTPException) as error:
                broken.append(error)

        threads = [threading.Thread(target=ask) for _ in range(num_connections)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.elapsed_seconds = time.perf_counter() - begin
        if broken:
            raise UserError(f"the connection to {self.address} broke: {broken[0]}")

    def _ask(self, seeds: Iterator[int], end: float) -> None:
        parts = urlsplit(self.address)
        secure = parts.scheme == "https"
        connect = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        client = connect(parts.hostname or "", parts.port, timeout=TIMEOUT_SECONDS)
        headers = {"Content-Type": "application/json", "Accept": "image/png"}
        headers |= {"Authorization": f"Bearer {self.key}"} if self.key else {}
        while (asked_at := time.perf_counter()) < end:
            client.request("POST", "/generate", json.dumps(self.body | {"seed": next(seeds)}), headers)
            response = client.getresponse()
            response.read()
            if response.status == http.client.OK:
                self.milliseconds.append(1000 * (time.perf_counter() - asked_at))
                self.stages.append(stages(response.headers.get("Server-Timing", "")))
            else:
                self.others[response.status] += 1
        client.close()

    def row(self, num_connections: int, num_images: int) -> str:
        """The cells below HEADINGS."""
        others = ", ".join(f"{status}: {count}" for status, count in sorted(self.others.items())) or "none"
        if len(self.milliseconds) < 2:
            return f"{num_connections:>{len(HEADINGS[0])}}  nothing was answered in that time; other answers: {others}"
        rate = len(self.milliseconds) / self.elapsed_seconds
        percent = statistics.quantiles(self.milliseconds, n=100, method="inclusive")
        means = (statistics.fmean(each.get(stage, 0.0) for each in self.stages) for stage in ("queue", "run", "encode"))
        numbers = (f"{number:,.1f}" for number in (rate, rate * num_images, percent[49], percent[94], percent[98], *means))
        cells = (str(num_connections), *numbers, others)
        return "  ".join(f"{cell:>{len(heading)}}" for cell, heading in zip(cells, HEADINGS, strict=True))


def stages(header: str) -> dict[str, float]:
    """A Server-Timing header's milliseconds, by name."""
    return {name: float(value) for name, value in re.findall(r"(\w+);dur=([\d.]+)", header)}
