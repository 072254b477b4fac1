"""Whether every answer is the very bytes that it should be: at any load, after a restart, and while versions are swapped.

    .venv/bin/python bench/serving/exactness.py          about 10 minutes on 2 idle cores

First some hundreds of different requests are asked one by one, which gives the references, and the server is started anew. Then 10,000 are
drawn of them and asked by 1 to 64 connections at once, a number that changes all the time.

Then `production` of a model is moved to and fro between two versions 100 times, and rolled back 20 times, while 8 clients ask for pictures
without naming a version: each must be byte for byte that of the version that its answer names, and none may fail.
"""

import argparse
import asyncio
import json
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import subjects
from client import Answer, Connection, connected
from running import Server, options, ours, pin, table

MODELS = ("digits", "digits", "fashion", subjects.DCGAN)  # drawn with equal shares
FORMS = ("image/png", "image/png", "application/x-npy", "application/zip", "image/jpeg")
MOST_IMAGES = {"digits": 64, "fashion": 64, subjects.DCGAN: 8}
MOST_CONNECTIONS = 64
SWAPPING = "swapped"
CLIENTS, SEEDS = 8, 20


@dataclass(frozen=True)
class Request:
    path: str
    body: str
    form: str

    @classmethod
    def drawn(cls, by: random.Random) -> "Request":
        model, seed = by.choice(MODELS), by.randrange(2**31)
        if by.random() < 0.1:
            body = {"model": model, "anchors": [{"seed": seed}, {"seed": seed + 1}], "steps": by.randint(0, 6)}
            return cls("/interpolate", json.dumps(body), by.choice(FORMS))
        body = {"model": model, "num_images": by.randint(1, MOST_IMAGES[model]), "seed": seed}
        return cls("/generate", json.dumps(body), by.choice(FORMS))

    async def ask(self, connection: Connection) -> Answer:
        return await connection.ask(self.path, self.body, headers=f"Accept: {self.form}\r\n")


def main() -> None:
    parser = options(__doc__, seconds=0)
    parser.add_argument("--different", type=int, default=500, help="requests that have a reference")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--swaps", type=int, default=100)
    parser.add_argument("--rollbacks", type=int, default=20)
    given = parser.parse_args()
    pin(given.load_core)
    for part in (any_load, swaps):
        for line in part(given):
            print(line, flush=True)
        print()


# --- at any load --------------------------------------------------------------------------------------------------------------


def any_load(given: argparse.Namespace) -> Iterator[str]:
    repository = subjects.repository(given.cache)
    subjects.copy(subjects.FASHION, repository, "fashion")
    by = random.Random(0)  # noqa: S311
    requests = [Request.drawn(by) for _ in range(given.different)]
    with ours(repository, given.server_core) as server:
        references = asyncio.run(one_by_one(server, requests))
    with ours(repository, given.server_core) as server:
        outcomes = asyncio.run(crowd(server, references, given.requests, by))
    yield table("requests", "different ones", "the same bytes", "other bytes", "other answers")
    others = ", ".join(f"{count} x {status}" for status, count in outcomes.items() if status not in ("same", "other"))
    yield f"| {sum(outcomes.values())} | {len(references)} | {outcomes['same']} | {outcomes['other']} | {others or 0} |"


async def one_by_one(server: Server, requests: list[Request]) -> dict[Request, bytes]:
    references = {}
    async with connected(server.port, 1) as [connection]:
        for request in requests:
            answer = await request.ask(connection)
            if answer.status != 200:
                raise RuntimeError(f"{request} is answered with {answer.status}: {answer.body[:300]!r}")
            references[request] = answer.body
    return references


async def crowd(server: Server, references: dict[Request, bytes], count: int, by: random.Random) -> Counter[str]:
    """Waves of a few requests on each of 1 to 64 connections."""
    outcomes: Counter[str] = Counter()
    known = list(references)
    async with connected(server.port, MOST_CONNECTIONS) as connections:

        async def some(connection: Connection, requests: list[Request]) -> None:
            for request in requests:
                answer = await request.ask(connection)
                same = "same" if answer.body == references[request] else "other"
                outcomes[same if answer.status == 200 else str(answer.status)] += 1

        while (left := count - outcomes.total()) > 0:
            busy = connections[: min(left, by.randint(1, MOST_CONNECTIONS))]
            await asyncio.gather(*(some(connection, by.choices(known, k=min(4, left // len(busy)))) for connection in busy))
    return outcomes


# --- while versions are swapped -----------------------------------------------------------------------------------------------


def swaps(given: argparse.Namespace) -> Iterator[str]:
    with TemporaryDirectory() as folder:
        for version, source in enumerate((subjects.DIGITS, subjects.FASHION), start=1):
            subjects.copy(source, Path(folder), SWAPPING, version)
        with ours(Path(folder), given.server_core) as server:
            outcomes, moves = asyncio.run(swapping(server, given.swaps, given.rollbacks))
    yield table("swaps", "rollbacks", "that another version answered", "requests meanwhile", "by version 1, 2", "other bytes", "failed")
    cells = [given.swaps, given.rollbacks, moves, outcomes.total(), f"{outcomes['1']}, {outcomes['2']}", outcomes["other"]]
    yield f"| {' | '.join(map(str, cells))} | {outcomes['failed']} |"


async def swapping(server: Server, num_swaps: int, num_rollbacks: int) -> tuple[Counter[str], int]:
    """What the clients saw, and how many moves were not followed at once."""
    outcomes: Counter[str] = Counter()
    unmoved = 0
    done = asyncio.Event()
    async with connected(server.port, CLIENTS + 1) as [mover, *clients]:
        bodies = [json.dumps({"model": SWAPPING, "num_images": 4, "seed": seed}) for seed in range(SEEDS)]
        references: dict[tuple[str, int], bytes] = {}
        for version in (1, 2):  # a PNG holds its request, so that naming the version would make other bytes
            await move(mover, version)
            references |= {(str(version), index): (await mover.ask("/generate", body)).body for index, body in enumerate(bodies)}

        async def keep_asking(client: Connection) -> None:
            index = 0
            while not done.is_set():
                index = (index + 1) % SEEDS
                answer = await client.ask("/generate", bodies[index])
                version = answer.headers.get("x-version", "failed") if answer.status == 200 else "failed"
                outcomes[version if version == "failed" or answer.body == references[version, index] else "other"] += 1

        asking = [asyncio.create_task(keep_asking(client)) for client in clients]
        before, now = 1, 2
        for step in range(num_swaps + num_rollbacks):
            wanted = before if step >= num_swaps else 1 + step % 2
            before, now = now, await move(mover, "previous" if step >= num_swaps else wanted)
            unmoved += now != wanted
        done.set()
        await asyncio.gather(*asking)
    return outcomes, unmoved


async def move(connection: Connection, version: int | str) -> int:
    """Point `production` at a version; the version that answers now."""
    answer = await connection.ask(f"/models/{SWAPPING}/aliases/production", json.dumps({"version": version}), "PUT")
    if answer.status != 200:
        raise RuntimeError(f"the alias is answered with {answer.status}: {answer.body[:300]!r}")
    answer = await connection.ask("/generate", json.dumps({"model": SWAPPING, "num_images": 1, "seed": 0}))
    return int(answer.headers["x-version"])


if __name__ == "__main__":
    main()
