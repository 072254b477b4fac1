"""What the service costs: one request against the same calls with no server, and a full server against the bare work.

    .venv/bin/python bench/serving/alone.py          about 10 minutes on 2 idle cores

The calls with no server run in a process of their own on the server's core, with its one thread: draw, run, lay out, encode. Wanted: at one
connection, the median at most 1.0 ms over them; at 32, at least 0.93 of what the core could do if a request cost the bare work at its best
batch and, beside it, what it costs by itself (a route that does nothing). The sides take turns; medians, and the range over the rounds.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import subjects
import torch
import wrk
from peers import BODY, CASES, CONNECTIONS, Case, span
from running import options, ours, pinned, table

from app import encoders, latents, pixels
from app.engine import Engine
from training.contract import Manifest
from training.files.versions import MANIFEST

REQUESTS = (1, 2, 4, 8, 16)  # in a batch, as far as the engine takes them


@dataclass(frozen=True)
class Round:
    """
    call_ms: the median of one request's calls.
    bare: requests a second of the calls alone, at the best batch.
    null: requests a second of the route that does nothing.
    """

    call_ms: float
    bare: float
    batch: int
    null: float
    served_ms: float
    served: float

    @property
    def share(self) -> float:
        return self.served * (1 / self.bare + 1 / self.null)


def main() -> None:
    parser = options(__doc__, seconds=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--offline", nargs=2, help=argparse.SUPPRESS)  # the calls alone, in a process of their own
    given = parser.parse_args()
    if given.offline:
        print(json.dumps(offline(Path(given.offline[0]), int(given.offline[1]), given.seconds)))
        return
    repository = subjects.repository(given.cache)
    heads = ("model, images", "one call, ms", "one request, ms", "apart (1.0)")
    print(table(*heads, "bare, requests/s (batch)", "null, requests/s", "served, requests/s", "share (0.93)"))
    for case in CASES:
        print(row(case, [measure(case, repository, given) for _ in range(given.rounds)]), flush=True)


def row(case: Case, rounds: Sequence[Round]) -> str:
    times = [span(values, digits=2) for values in ([it.call_ms for it in rounds], [it.served_ms for it in rounds])]
    apart = span([it.served_ms - it.call_ms for it in rounds], digits=2)
    rates = [span([getattr(it, name) for it in rounds]) for name in ("bare", "null", "served")]
    rates[0] += f" ({statistics.mode(it.batch for it in rounds)})"
    share = span([it.share for it in rounds], digits=3)
    return f"| {' | '.join([f'{case.model}, {case.num_images}', *times, apart, *rates, share])} |"


def measure(case: Case, repository: Path, given: argparse.Namespace) -> Round:
    folder = subjects.folder_of(repository, case.model)
    words = [sys.executable, __file__, "--seconds", str(given.seconds), "--offline", str(folder), str(case.num_images)]
    alone = json.loads(subprocess.run([*pinned(given.server_core), *words], check=True, capture_output=True, text=True).stdout)
    with ours(repository, given.server_core, variant=["probe"]) as server:
        body = case.fill(BODY)
        server.wait_for("/generate", body.replace("SEED", "0"))
        server.wait_for("/null", body.replace("SEED", "0"))
        single, null, full = (
            wrk.run(server, path, body, connections, given.seconds, given.load_core).checked()
            for path, connections in (("/generate", 1), ("/null", CONNECTIONS[-1]), ("/generate", CONNECTIONS[-1]))
        )
    return Round(alone["call_ms"], alone["rate"], alone["batch"], null.rate, single.p50_ms, full.rate)


# --- with no server -----------------------------------------------------------------------------------------------------------


def offline(folder: Path, num_images: int, seconds: float) -> dict[str, float]:
    """The median of one request's calls, and the rate of requests at the best number in a batch."""
    torch.set_num_threads(1)
    engine = Engine.load(folder, Manifest.model_validate_json((folder / MANIFEST).read_bytes()), torch.device("cpu"))
    possible = [count for count in REQUESTS if count * num_images <= engine.max_rows("generator")]
    taken = {count: calls(engine, num_images, count, seconds / len(possible)) for count in possible}
    best = max(possible, key=lambda count: count * len(taken[count]) / sum(taken[count]))
    rate = best * len(taken[best]) / sum(taken[best])
    return {"call_ms": 1000 * statistics.median(taken[1]), "rate": rate, "batch": best}


def calls(engine: Engine, num_images: int, count: int, seconds: float) -> list[float]:
    """Seconds that each batch of so many requests took."""
    taken: list[float] = []
    call(engine, 0, num_images, count)
    while sum(taken) < seconds:
        begin = time.perf_counter()
        call(engine, len(taken), num_images, count)
        taken.append(time.perf_counter() - begin)
    return taken


def call(engine: Engine, first: int, num_images: int, count: int) -> list[bytes]:
    """What the service does for `count` requests, but for their way in and out."""
    seeds = range(first, first + num_images * count)
    images = engine.run("generator", latents.draw(engine.manifest.generator.inputs, seeds))
    return [encoders.png(pixels.grid(part)) for part in torch.split(images, num_images)]


if __name__ == "__main__":
    main()
