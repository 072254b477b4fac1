"""More than the server can take: twice its peak, and 500 clients that leave.

    .venv/bin/python bench/serving/overload.py          about 3 minutes on 2 idle cores

Requests come at moments of their own (a Poisson process at twice the rate that 32 wrk connections reach), whether the ones before are
answered or not; latencies count from the moment at which one should have been sent. Wanted: what is served is at least 95 % of the peak,
who is turned away knows it within 20 ms, and the memory is flat.

Then 500 clients ask for 8 images each and leave while they wait. Wanted: nothing of theirs runs but what ran before, and the batch that was
running. The server counts the rows that its engines are asked for.
"""

import argparse
import asyncio
import random
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import subjects
import wrk
from client import Connection, connected
from peers import BODY, CASES, CONNECTIONS
from running import Server, options, ours, pin, table

PEAK_SECONDS = 10
LEAVING, IMAGES = 500, 8
QUIET_SECONDS = 5.0  # in which no row has run


@dataclass
class Seen:
    """What the clients saw; seconds since each request's moment."""

    end: float  # of what counts
    answered: list[tuple[int, float]] = field(default_factory=list)  # status, seconds
    served_in_time: int = 0
    late: list[float] = field(default_factory=list)  # by how much it was sent too late, which is the fault of this program
    lost: int = 0
    idle: list[Connection] = field(default_factory=list)

    def kept(self) -> Connection | None:
        """A connection that nobody uses; the server closes those that have been idle for some seconds."""
        while self.idle:
            if not (connection := self.idle.pop()).reader.at_eof():
                return connection
            connection.leave()
        return None

    @property
    def refusals(self) -> Counter[int]:
        return Counter(status for status, _ in self.answered if status != 200)

    def seconds(self, *, served: bool) -> list[float]:
        return sorted(seconds for status, seconds in self.answered if (status == 200) == served)


def main() -> None:
    given = options(__doc__, seconds=60).parse_args()
    repository = subjects.repository(given.cache)
    pin(given.load_core)
    for part in (twice, leaving):
        for line in part(repository, given):
            print(line, flush=True)
        print()


# --- twice the peak -----------------------------------------------------------------------------------------------------------


def twice(repository: Path, given: argparse.Namespace) -> Iterator[str]:
    heads = ["model, images", "peak, requests/s", "served", "of the peak (0.95)", "turned away", "lost"]
    heads += ["their p50, p99, max, ms (20)", "p99 of who was served, ms", "sent late, p99, ms", "memory: first, last third, MB"]
    yield table(*heads)
    for case in CASES:
        body = case.fill(BODY)
        with ours(repository, given.server_core) as server:
            wrk.run(server, "/generate", body, CONNECTIONS[-1], 2, given.load_core)
            peak = wrk.run(server, "/generate", body, CONNECTIONS[-1], min(PEAK_SECONDS, given.seconds), given.load_core).checked().rate
            seen, memory = asyncio.run(storm(server, body, 2 * peak, given.seconds))
        served, refused = seen.seconds(served=True), seen.seconds(served=False)
        goodput, third = seen.served_in_time / given.seconds, max(1, len(memory) // 3)
        cells = [f"{case.model}, {case.num_images}", f"{peak:.0f}", f"{goodput:.0f}", f"{goodput / peak:.3f}"]
        cells += [", ".join(f"{count} x {status}" for status, count in seen.refusals.items()), str(seen.lost)]
        cells += [" ".join(f"{1000 * quantile(refused, share):.1f}" for share in (0.5, 0.99, 1))]
        cells += [f"{1000 * quantile(seconds, 0.99):.1f}" for seconds in (served, sorted(seen.late))]
        yield f"| {' | '.join(cells)} | {statistics.median(memory[:third]):.0f}, {statistics.median(memory[-third:]):.0f} |"


async def storm(server: Server, body: str, rate: float, seconds: float) -> tuple[Seen, list[float]]:
    """So many requests a second for so long, and the server's memory in each second."""
    begin = due = time.perf_counter()
    seen, memory, moments = Seen(begin + seconds), list[float](), random.Random(0)  # noqa: S311
    tasks: set[asyncio.Task[None]] = set()
    while (due := due + moments.expovariate(rate)) < seen.end:
        if (early := due - time.perf_counter()) > 0:
            await asyncio.sleep(early)
        task = asyncio.create_task(one(server.port, body.replace("SEED", str(moments.randrange(2**30))), due, seen))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        if time.perf_counter() - begin > len(memory):
            memory.append(server.memory_mb())
    await asyncio.gather(*tasks)
    for connection in seen.idle:
        connection.leave()
    return seen, memory


async def one(port: int, body: str, due: float, seen: Seen) -> None:
    try:
        connection = seen.kept() or await Connection.open(port)
        seen.late.append(time.perf_counter() - due)
        answer = await connection.ask("/generate", body)
    except (OSError, EOFError):
        seen.lost += 1
        return
    now = time.perf_counter()
    seen.answered.append((answer.status, now - due))
    seen.served_in_time += answer.status == 200 and now < seen.end
    seen.idle.append(connection)


def quantile(ascending: list[float], share: float) -> float:
    return ascending[min(len(ascending) - 1, int(share * len(ascending)))] if ascending else float("nan")


# --- clients that leave -------------------------------------------------------------------------------------------------------


def leaving(repository: Path, given: argparse.Namespace) -> Iterator[str]:
    yield table("model", "clients that left", "rows that they asked for", "ran until they had left", "ran afterwards (0)")
    for case in CASES:
        body = BODY.replace("MODEL", case.model).replace("COUNT", str(IMAGES))
        with ours(repository, given.server_core, variant=["probe"]) as server:
            before, after = asyncio.run(leave(server, body))
        yield f"| {case.model} | {LEAVING} | {LEAVING * IMAGES} | {before} | {after} |"


async def leave(server: Server, body: str) -> tuple[int, int]:
    """The rows that ran until the clients had left, and those that ran afterwards."""
    begin = rows(server)
    async with connected(server.port, LEAVING) as clients:
        for seed, client in enumerate(clients):
            client.send("/generate", body.replace("SEED", str(seed * IMAGES)))
        while rows(server) == begin:  # they are being read
            await asyncio.sleep(0.01)
    await asyncio.sleep(0)  # the connections are closed in the loop's next turn
    left = last = rows(server)
    quiet = time.perf_counter()
    while time.perf_counter() - quiet < QUIET_SECONDS:
        await asyncio.sleep(0.1)
        if (now := rows(server)) != last:
            last, quiet = now, time.perf_counter()
    return left - begin, last - left


def rows(server: Server) -> int:
    return int(server.get("/rows")[1])


if __name__ == "__main__":
    main()
