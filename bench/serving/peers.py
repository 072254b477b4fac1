"""This service beside others that serve the same model, by requests a second at 1, 8 and 32 connections.

    .venv/bin/python bench/serving/peers.py --tune                    how each peer is best set up here, once, about 40 minutes
    .venv/bin/python bench/serving/peers.py                           both models, all peers, about 90 minutes on 2 idle cores
    .venv/bin/python bench/serving/peers.py --model digits --peer mosec --rounds 3

Each peer is installed in an environment of its own that shares this one's torch, and does the work of `work.py` by its adapter. The server
has one core and one thread, the load another core. In each round every server is started once, in a random order. Before and after a
measurement its pictures are decoded and compared: a value that is off by more than 1 of 255 ends the bench.

"Same code" is ours with Pillow's PNG, as the peers have it; "as it ships" is ours as it is.
"""

import argparse
import base64
import io
import json
import random
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path

import numpy as np
import subjects
import wrk
from numpy.typing import NDArray
from PIL import Image
from running import HERE, ROOT, Server, free_port, options, ours, serving, table
from work import Ask, Generator, Setup, render

CONNECTIONS = (1, 8, 32)
WARM_SECONDS = 3  # some learn how long their batches take
NUM_COMPARED = 100  # pictures, before and after
REFUSALS = 50  # of one request
GRID = ((1, 0.0), (4, 0.0), (4, 2.0), (4, 5.0), (8, 2.0))  # requests in a batch, milliseconds that one may wait for others
BODY = '{"model": "MODEL", "num_images": COUNT, "seed": SEED}'
TENSOR = '{"inputs": [{"name": "ask", "shape": [1, 2], "datatype": "INT64", "data": [SEED, COUNT]}]}'
SAME, SHIPS = "ganserve, Pillow", "ganserve"


@dataclass(frozen=True)
class Case:
    """What is asked for, and what the comparison is asked to reach at 1, 8 and 32 connections: times the requests a second of a peer."""

    model: str
    num_images: int
    wanted_same: Mapping[str, tuple[float, ...]]
    wanted_ships: tuple[float, ...] = ()

    def fill(self, body: str) -> str:
        return body.replace("MODEL", self.model).replace("COUNT", str(self.num_images))


@dataclass(frozen=True)
class Peer:
    """Another server, and how it is asked."""

    name: str
    requirements: tuple[str, ...]
    adapter: str
    grid: tuple[tuple[int, float], ...] = GRID
    path: str = "/generate"
    body: str = BODY
    picture: Callable[[bytes], bytes] = field(default=bytes)


def _in_tensor(answer: bytes) -> bytes:
    return base64.b64decode(json.loads(answer)["outputs"][0]["data"][0])


FASTAPI = ("fastapi==0.165.0", "uvicorn[standard]==0.54.0")
PEERS = (
    Peer("FastAPI, async def", FASTAPI, "with_fastapi.py", ((1, 0.0),)),
    Peer("FastAPI, def", FASTAPI, "with_fastapi.py", ((1, 0.0),), path="/threads"),
    Peer("LitServe", ("litserve==0.2.19",), "with_litserve.py"),
    Peer("mosec", ("mosec==0.9.8",), "with_mosec.py"),
    Peer("BentoML", ("bentoml==1.4.39",), "with_bentoml.py", tuple((batch, 0.0) for batch in (1, 4, 8))),
    Peer("Ray Serve", ("ray[serve]==2.60.0",), "with_ray.py"),
    Peer("MLServer", ("mlserver==1.7.1",), "with_mlserver.py", path="/v2/models/render/infer", body=TENSOR, picture=_in_tensor),
)
BY_HAND = tuple(peer.name for peer in PEERS if peer.requirements == FASTAPI)
NEVER_BEHIND = dict.fromkeys((peer.name for peer in PEERS), (1.0, 1.0, 1.0))
CASES = (
    Case("digits", 16, {"mosec": (1.8, 0.95, 0.85), **dict.fromkeys(("LitServe", *BY_HAND), (0, 1.65, 1.65))}, (2.0, 1.5, 1.3)),
    Case(subjects.DCGAN, 4, NEVER_BEHIND),
)
Chosen = dict[str, dict[str, tuple[int, float]]]  # by model and peer
Rates = dict[str, list[tuple[wrk.Load, ...]]]  # by server: of each round, a load for each of CONNECTIONS


@dataclass(frozen=True)
class Bench:
    """What a run of this bench works with."""

    given: argparse.Namespace
    repository: Path
    chosen: Chosen

    @contextmanager
    def peer(self, peer: Peer, case: Case, max_batch: int, wait_ms: float) -> Iterator[Server]:
        setup = Setup(subjects.folder_of(self.repository, case.model), free_port(), max_batch, wait_ms)
        python = environment(peer, self.given.environments)
        environ = setup.environment() | {"PYTHONPATH": f"{ROOT}:{HERE}"}
        with serving([python, HERE / "adapters" / peer.adapter], setup.port, self.given.server_core, environ) as server:
            yield server

    def measure(self, peer: Peer, case: Case, server: Server) -> tuple[wrk.Load, ...]:
        """A load for each of CONNECTIONS.

        Raises:
            RuntimeError: its pictures are not those that they should be.
        """
        body, seconds, core = case.fill(peer.body), self.given.seconds, self.given.load_core
        server.wait_for(peer.path, body.replace("SEED", "0"))
        wrk.run(server, peer.path, body, CONNECTIONS[1], min(WARM_SECONDS, seconds), core)
        self.compare(peer, case, server)
        loads = tuple(wrk.run(server, peer.path, body, connections, seconds, core) for connections in CONNECTIONS)
        self.compare(peer, case, server)
        return loads

    def compare(self, peer: Peer, case: Case, server: Server) -> None:
        expected = expected_pictures(subjects.folder_of(self.repository, case.model), case.num_images)

        def ask(seed: int) -> NDArray[np.int16]:
            for _ in range(REFUSALS):  # they are counted where the load is measured; here only what is answered counts
                status, _, answer = server.post(peer.path, case.fill(peer.body).replace("SEED", str(seed)))
                if status == 200:
                    return decoded(peer.picture(answer))
            raise RuntimeError(f"{peer.name} answers {status}: {answer[:300]!r}")

        with ThreadPoolExecutor(CONNECTIONS[1]) as pool:
            for seed, picture in enumerate(pool.map(ask, range(len(expected)))):
                if picture.shape != expected[seed].shape or np.abs(picture - expected[seed]).max() > 1:
                    raise RuntimeError(f"{peer.name} answers seed {seed} with another picture")


def main() -> None:
    parser = options(__doc__, seconds=10)
    parser.add_argument("--environments", type=Path, help="folder of the peers' environments; in --cache when left out")
    parser.add_argument("--model", action="append", choices=[case.model for case in CASES])
    parser.add_argument("--peer", action="append", choices=[peer.name for peer in PEERS])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--raw", type=Path, help="file that gets a line of JSON for each measurement")
    parser.add_argument("--tune", action="store_true")
    given = parser.parse_args()
    given.environments = given.environments or given.cache / "environments"
    settings = given.cache / "settings.json"
    repository = subjects.repository(given.cache)
    bench = Bench(given, repository, json.loads(settings.read_text()) if settings.exists() else {})
    peers = [peer for peer in PEERS if not given.peer or peer.name in given.peer]
    for peer in peers:
        environment(peer, given.environments)
    for case in CASES:
        if not given.model or case.model in given.model:
            for line in (tune if given.tune else compete)(bench, case, peers):
                print(line, flush=True)
            if given.tune:
                settings.write_text(json.dumps(bench.chosen, indent=2))


# --- how each is set up -------------------------------------------------------------------------------------------------------


def tune(bench: Bench, case: Case, peers: Sequence[Peer]) -> Iterator[str]:
    """One set-up for all numbers of connections, since a server is not told of them: the best by the product of the rates."""
    yield table(case.model, "requests in a batch, ms of waiting", *(f"requests/s at {count}" for count in CONNECTIONS))
    for peer in peers:
        products: dict[tuple[int, float], float] = {}
        for max_batch, wait_ms in peer.grid:
            with bench.peer(peer, case, max_batch, wait_ms) as server:
                loads = bench.measure(peer, case, server)
            products[max_batch, wait_ms] = float(np.prod([load.rate for load in loads]))
            yield f"| {peer.name} | {max_batch}, {wait_ms:g} | {' | '.join(f'{load.rate:.0f}' for load in loads)} |"
        bench.chosen.setdefault(case.model, {})[peer.name] = max(products, key=products.__getitem__)


# --- the comparison -----------------------------------------------------------------------------------------------------------


def compete(bench: Bench, case: Case, peers: Sequence[Peer]) -> Iterator[str]:
    rates: Rates = {name: [] for name in (SHIPS, SAME, *(peer.name for peer in peers))}
    for _ in range(bench.given.rounds):
        for name in random.sample(list(rates), len(rates)):
            rates[name].append(one(bench, case, name))
            if bench.given.raw:
                with bench.given.raw.open("a") as raw:
                    raw.write(json.dumps({"model": case.model, "server": name, "loads": [vars(load) for load in rates[name][-1]]}) + "\n")
    yield from results(bench, case, rates)
    yield from comparison(case, rates, peers)


def one(bench: Bench, case: Case, name: str) -> tuple[wrk.Load, ...]:
    if name in (SAME, SHIPS):
        own = Peer(name, (), "")
        with ours(bench.repository, bench.given.server_core, variant=["pillow"] if name == SAME else []) as server:
            return tuple(load.checked() for load in bench.measure(own, case, server))
    peer = next(peer for peer in PEERS if peer.name == name)
    with bench.peer(peer, case, *setting(bench, case, peer)) as server:
        return bench.measure(peer, case, server)


def setting(bench: Bench, case: Case, peer: Peer) -> tuple[int, float]:
    """What --tune has found, or else the middle of the grid."""
    max_batch, wait_ms = bench.chosen.get(case.model, {}).get(peer.name, peer.grid[len(peer.grid) // 2])
    return max_batch, wait_ms


def results(bench: Bench, case: Case, rates: Rates) -> Iterator[str]:
    heads = [f"{count} connection{'s' * (count > 1)}" for count in CONNECTIONS]
    yield table(f"{case.model}, {case.num_images} images: requests/s", "batch, wait ms", *heads, "p50 at 1, ms", "refused, failed")
    for name, rounds in rates.items():
        peer = next((peer for peer in PEERS if peer.name == name), None)
        words = "-" if peer is None else "{}, {:g}".format(*setting(bench, case, peer))
        cells = [span([loads[index].rate for loads in rounds]) for index in range(len(CONNECTIONS))]
        p50 = span([loads[0].p50_ms for loads in rounds], digits=1)
        lost = sum(load.refused for loads in rounds for load in loads), sum(load.failed for loads in rounds for load in loads)
        yield f"| {title(name)} | {words} | {' | '.join(cells)} | {p50} | {lost[0]}, {lost[1]} |"
    yield ""


def comparison(case: Case, rates: Rates, peers: Sequence[Peer]) -> Iterator[str]:
    yield table(f"{case.model}: times the rate of", *(f"at {count} (wanted)" for count in CONNECTIONS))
    for peer in peers:
        cells = [against(rates, SAME, [peer.name], index, case.wanted_same.get(peer.name, ())) for index in range(len(CONNECTIONS))]
        yield f"| {peer.name}, same code | {' | '.join(cells)} |"
    names = [peer.name for peer in peers]
    cells = [against(rates, SHIPS, names, index, case.wanted_ships) for index in range(len(CONNECTIONS))]
    yield f"| the best peer, as each ships | {' | '.join(cells)} |"
    yield ""


def against(rates: Rates, own: str, others: Sequence[str], index: int, wanted: Sequence[float]) -> str:
    """Over the rounds: our rate over that of the other that is the best by its median."""
    best = max(others, key=lambda name: statistics.median(loads[index].rate for loads in rates[name]))
    ratios = [mine[index].rate / other[index].rate for mine, other in zip(rates[own], rates[best], strict=True)]
    asked = f" ({wanted[index]:g})" if wanted and wanted[index] else ""
    return f"{span(ratios, digits=2)}{asked}{f', {best}' if len(others) > 1 else ''}"


def span(values: Sequence[float], digits: int = 0) -> str:
    """The median and the range."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def title(name: str) -> str:
    versions = [requirement.split("==")[1] for peer in PEERS if peer.name == name for requirement in peer.requirements[:1]]
    return " ".join([name, *versions])


# --- what it takes ------------------------------------------------------------------------------------------------------------


@cache
def expected_pictures(folder: Path, num_images: int) -> list[NDArray[np.int16]]:
    """The pictures of the first seeds, made here."""
    generator = Generator.load(folder)
    return [decoded(render(generator, [Ask(seed, num_images)])[0]) for seed in range(NUM_COMPARED)]


def decoded(png: bytes) -> NDArray[np.int16]:
    return np.asarray(Image.open(io.BytesIO(png))).astype(np.int16)


def environment(peer: Peer, folder: Path) -> Path:
    """The interpreter of the peer's own environment, made now if it was not yet; what it lacks it finds in this one, torch above all."""
    home = folder / Path(peer.adapter).stem
    python, done = home / "bin" / "python", home / "installed"
    shared = "\n".join(f"{name}=={version(name)}" for name in ("torch", "numpy", "pillow"))
    wanted = "\n".join((*peer.requirements, shared))
    if done.exists() and done.read_text() == wanted:
        return python
    print(f"installing {peer.name}", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
    here, there = (Path(np.__file__).parent.parent, next(home.glob("lib/python*/site-packages")))
    (there / "shared.pth").write_text(f"{here}\n")
    fixed = home / "constraints.txt"
    fixed.write_text(shared)
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--constraint", str(fixed)]
    subprocess.run([*command, *peer.requirements], check=True, stdout=sys.stderr)
    done.write_text(wanted)
    return python


if __name__ == "__main__":
    main()
