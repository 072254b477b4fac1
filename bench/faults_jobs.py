"""Jobs under fire: servers, workers or both are killed at random moments while jobs are submitted, cancelled, watched and run.

    .venv/bin/python bench/faults_jobs.py                         100 kills, one server on SQLite; about 25 minutes on 2 cores
    .venv/bin/python bench/faults_jobs.py --database postgresql   the same with two servers on one PostgreSQL (Debian's, started here)
    .venv/bin/python bench/faults_jobs.py --kills 10 --seed 7

Clients write down what was acknowledged, as it was; at the end that is compared with what there is: jobs, data sets, cancellations,
events as their watchers saw them over all reconnections, published versions and their weights, and what `ganserve fsck` says.
"""

import argparse
import io
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from killed_servers import Server, is_at_work, workers
from PIL import Image

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "tests")]
from postgresql import postgresql  # noqa: E402

from training import datasets  # noqa: E402
from training.contract import FINISHED, Manifest  # noqa: E402
from training.export import published_weights  # noqa: E402
from training.files import events, runs, versions  # noqa: E402

SETTLE_SECONDS = 1200.0
LOOK_SECONDS, DOUBLE_SECONDS = 0.25, 2.0
MAX_UNFINISHED = 6
NUM_CONFIGS = 4
CONFIG: dict[str, Any] = {
    "name": "under-fire",
    "architecture": "mlp",
    "options": {"generator_widths": [32, 32], "discriminator_widths": [32, 32]},
    "batch_size": 8,
    "total_images": 9_600,
    "checkpoint_images": 800,
    "sample_images": 3_200,
    "evaluation_images": 3_200,
    "num_evaluated": 16,
}


@dataclass
class History:
    """What clients were told."""

    acknowledged: dict[str, int] = field(default_factory=dict)  # job: which config
    cancelled: set[str] = field(default_factory=set)
    uploaded: dict[str, int] = field(default_factory=dict)  # data set: how many images it has
    retried: Counter[str] = field(default_factory=Counter)
    seen: dict[str, list[tuple[int, str, str]]] = field(default_factory=dict)  # events by job: number, kind, data
    twice: set[str] = field(default_factory=set)  # jobs with two workers at one time
    num_kills: Counter[str] = field(default_factory=Counter)


class Fire:
    """The servers, their clients, and who kills."""

    def __init__(self, folder: Path, servers: list[Server], chance: random.Random) -> None:
        self.folder, self.servers, self.chance = folder, servers, chance
        self.history = History()
        # of all threads: a new one would read the system's certificates at each request
        self._client = httpx.Client(limits=httpx.Limits(max_connections=None, max_keepalive_connections=0))
        self._ending = threading.Event()  # no more is submitted or killed
        self._over = threading.Event()  # nobody watches any more
        self._threads: list[threading.Thread] = []

    def begin(self, *work: Callable[[], None]) -> None:
        for each in work:
            self._threads.append(threading.Thread(target=each, daemon=True))
            self._threads[-1].start()

    def ask(self, method: str, path: str, **arguments: Any) -> httpx.Response:  # noqa: ANN401 - httpx's own
        """Of any server, again until one answers with something else than that it is not well."""
        chance = random.Random()  # noqa: S311 - of this thread
        while True:
            try:
                answer = self._client.request(method, chance.choice(self.servers).url + path, timeout=30, **arguments)
            except httpx.TransportError:
                time.sleep(0.1)
                continue
            if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                return answer
            time.sleep(0.5)

    # --- clients ---

    def submit(self) -> None:
        chance = random.Random(1)  # noqa: S311 - no secret
        while not self._ending.wait(chance.uniform(0.5, 3.0)):
            if len(self._unfinished()) >= MAX_UNFINISHED:
                continue
            number, key = chance.randrange(NUM_CONFIGS), uuid.uuid4().hex
            answers = [self.ask("POST", "/train", json=CONFIG | {"seed": number}, headers={"Idempotency-Key": key})]
            if chance.random() < 0.3:  # a client that does not know whether it was heard
                answers.append(self.ask("POST", "/train", json=CONFIG | {"seed": number}, headers={"Idempotency-Key": key}))
            for answer in answers:
                if answer.status_code != httpx.codes.ACCEPTED:
                    raise SystemExit(f"POST /train was answered {answer.status_code}: {answer.text}")
                self.history.acknowledged[answer.json()["id"]] = number
            assert len({answer.json()["id"] for answer in answers}) == 1, "one key, one job"
            id = answers[0].json()["id"]
            self.begin(lambda id=id: self.watch(id))
            if chance.random() < 0.15:
                time.sleep(chance.uniform(0, 5))
                if self.ask("POST", f"/jobs/{id}/cancel").status_code == httpx.codes.ACCEPTED:
                    self.history.cancelled.add(id)

    def upload(self) -> None:
        """Small archives of pictures, each a data set."""
        chance = random.Random(2)  # noqa: S311 - no secret
        while not self._ending.wait(chance.uniform(4.0, 12.0)):
            name, num_images = f"set-{len(self.history.uploaded)}", chance.randrange(70, 200)
            headers = {"Content-Type": "application/zip", "Idempotency-Key": uuid.uuid4().hex}
            answer = self.ask("POST", "/datasets", params={"name": name, "size": 8}, content=archive(num_images), headers=headers)
            if answer.status_code != httpx.codes.ACCEPTED:
                raise SystemExit(f"POST /datasets was answered {answer.status_code}: {answer.text}")
            self.history.uploaded[name] = num_images

    def _importing(self) -> bool:
        return any(each["state"] == "importing" for each in self.ask("GET", "/datasets").json()["datasets"])

    def _unfinished(self) -> list[dict[str, Any]]:
        answer = self.ask("GET", "/jobs", params={"limit": 100, "state": ["queued", "running", "paused"]})
        return list(answer.json()["jobs"])

    def watch(self, id: str) -> None:
        """As a browser's EventSource does: connect again, and go on behind the last number."""
        seen = self.history.seen.setdefault(id, [])
        while not self._over.is_set():
            try:
                is_over = self._read_events(id, seen)
            except httpx.TransportError:
                is_over = False
            self._over.wait(4.0 if is_over else 0.3)  # a job that is over may be tried again

    def _read_events(self, id: str, seen: list[tuple[int, str, str]]) -> bool:
        """Whether the server said that this was all."""
        url = random.choice(self.servers).url  # noqa: S311 - no secret
        headers = {"Last-Event-ID": str(seen[-1][0] if seen else 0)}
        with self._client.stream("GET", f"{url}/jobs/{id}/events", headers=headers, timeout=httpx.Timeout(30, read=60)) as answer:
            fields: dict[str, str] = {}
            for line in answer.iter_lines():
                if line:
                    name, _, value = line.partition(": ")
                    fields[name] = value
                    continue
                if "id" in fields:
                    seen.append((int(fields["id"]), fields["event"], fields["data"]))
                if fields.get("event") == "end":
                    return True
                fields = {}
        return False

    def look_for_doubles(self) -> None:
        """Two that work at one job, and go on doing so: one that waits for the lock gives up within a second."""
        jobs = self.folder / "state" / "jobs"
        num_looks = Counter[str]()
        while not self._over.wait(LOOK_SECONDS):
            found = Counter(job for process, job in workers(self.folder).items() if is_at_work(process, jobs / job))
            doubles = {job for job, count in found.items() if count > 1}
            num_looks = Counter({job: num_looks[job] + 1 for job in doubles})
            self.history.twice |= {job for job, looks in num_looks.items() if looks * LOOK_SECONDS > DOUBLE_SECONDS}

    # --- the fire ---

    def kill(self, num_kills: int) -> None:
        for number in range(num_kills):
            time.sleep(self.chance.uniform(0.5, 6.0))
            what = self.chance.choice(("server", "worker", "both"))
            server = self.chance.choice(self.servers)
            if what != "worker":
                server.kill()
            if what != "server":
                self._kill_worker()
            if what != "worker":
                if self.chance.random() < 0.2:
                    self._kill_recovering(server)
                server.start()
            self.history.num_kills[what] += 1
            print(f"\r{number + 1} of {num_kills} kills, {len(self.history.acknowledged)} jobs", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)

    def _kill_recovering(self, server: Server) -> None:
        """Start it, and kill it before it is ready, or soon after."""
        server.launch()
        time.sleep(self.chance.uniform(1.0, 4.0))
        server.kill()
        self.history.num_kills["recovering server"] += 1

    def _kill_worker(self) -> None:
        found = workers(self.folder)
        if found:
            try:
                os.kill(self.chance.choice(list(found)), signal.SIGKILL)
            except ProcessLookupError:
                return

    # --- the end ---

    def settle(self) -> None:
        """Let everything end; what is called a crash loop, because three kills came before a checkpoint, is tried again as a user would."""
        self._ending.set()
        until = time.monotonic() + SETTLE_SECONDS
        while time.monotonic() < until:
            failed = self.ask("GET", "/jobs", params={"limit": 100, "state": "failed"}).json()["jobs"]
            for job in failed:
                if "crash loop" in job["message"] and self.ask("POST", f"/jobs/{job['id']}/retry").status_code == httpx.codes.ACCEPTED:
                    self.history.retried[job["id"]] += 1
            if not failed and not self._unfinished() and not self._importing():
                break
            time.sleep(0.5)
        time.sleep(6.0)  # for the last events
        self._over.set()


def archive(num_images: int) -> bytes:
    """Grey squares, each of another grey."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        for number in range(num_images):
            picture = io.BytesIO()
            Image.new("L", (8, 8), number).save(picture, "PNG")
            made.writestr(f"{number}.png", picture.getvalue())
    return file.getvalue()


def undisturbed(folder: Path) -> dict[int, dict[str, str]]:
    """The weights of each config, by a run that nobody kills."""
    folder.mkdir()
    server = Server(folder, "quiet", None)
    fire = Fire(folder, [server], random.Random(0))  # noqa: S311 - no secret
    ids = {number: fire.ask("POST", "/train", json=CONFIG | {"seed": number}).json()["id"] for number in range(NUM_CONFIGS)}
    while fire._unfinished():
        time.sleep(0.5)
    found = published(folder)
    server.stop()
    return {number: found[id][0][1] for number, id in ids.items()}


def published(folder: Path) -> dict[str, list[tuple[int, dict[str, str]]]]:
    """By job: the versions that it has published, with the hashes of their weights."""
    found: dict[str, list[tuple[int, dict[str, str]]]] = {}
    for number, path in versions.versions([folder / "models"], CONFIG["name"]).items():
        manifest = Manifest.model_validate_json((path / versions.MANIFEST).read_bytes())
        weights = {
            f"{player}.{name}": tensor.numpy().tobytes().hex()
            for player in ("generator", "discriminator")
            for name, tensor in dict(published_weights(manifest, path, player)).items()
        }
        found.setdefault(manifest.run, []).append((number, weights))
    return found


def report(fire: Fire, wanted: dict[int, dict[str, str]], folder: Path) -> list[tuple[str, str, bool]]:
    """What must hold: its name, the figure, and whether it does."""
    history, jobs = fire.history, folder / "state" / "jobs"
    states = {}
    for id in history.acknowledged:
        states[id] = runs.read_status(jobs / id).state if (jobs / id / runs.STATUS).exists() else "lost"
    lost = [id for id, state in states.items() if state == "lost"]
    unfinished = [id for id, state in states.items() if state not in FINISHED and state != "lost"]
    unheard = [id for id in history.cancelled if states[id] not in ("cancelled", "succeeded")]
    found = published(folder)
    succeeded = [id for id, state in states.items() if state == "succeeded"]
    twice = [id for id, made in found.items() if len(made) > 1]
    unpublished = [id for id in succeeded if id not in found]
    other = [id for id in succeeded if id in found and found[id][0][1] != wanted[history.acknowledged[id]]]
    sets = datasets.known(folder / "state" / "datasets")
    lost_sets = [name for name, images in history.uploaded.items() if name not in sets or sets[name].num_images != images]
    num_events, num_wrong = 0, 0
    for id, seen in history.seen.items():
        kept = [(number, event.event, json.dumps({"at": event.at, **event.data})) for number, event in events.Reader(jobs / id).read()]
        num_events += len(kept)
        told = [(number, kind, json.dumps(json.loads(data))) for number, kind, data in seen]
        num_wrong += told != kept
    more = len([path for path in jobs.iterdir() if (path / runs.STATUS).exists()]) - len(states)
    succeeding = f"{len(succeeded)} succeeded, {sum(state == 'cancelled' for state in states.values())} cancelled"
    ready = sorted(seconds for server in fire.servers for seconds in server.seconds_to_ready[1:])
    p95 = ready[min(len(ready) - 1, round(0.95 * len(ready)))] if ready else 0.0
    return [
        ("kills", ", ".join(f"{count} {what}" for what, count in sorted(history.num_kills.items())), True),
        ("jobs acknowledged", f"{len(states)} ({succeeding}; {sum(history.retried.values())} crash loops tried again)", True),
        ("acknowledged jobs lost", str(len(lost)), not lost),
        ("jobs that nobody was told of", str(more), True),
        ("acknowledged data sets lost", f"{len(lost_sets)} of {len(history.uploaded)}", not lost_sets),
        ("not at an end", str(len(unfinished)), not unfinished),
        ("cancellations lost", f"{len(unheard)} of {len(history.cancelled)}", not unheard),
        ("published twice", str(len(twice)), not twice),
        ("succeeded and not published", str(len(unpublished)), not unpublished),
        ("final weights equal", f"{len(succeeded) - len(other) - len(unpublished)} of {len(succeeded)}", not other),
        ("jobs with two workers at work", str(len(history.twice)), not history.twice),
        ("watchers that missed or repeated an event", f"{num_wrong} of {len(history.seen)} ({num_events:,} events)", not num_wrong),
        ("restart to ready, median and p95", f"{ready[len(ready) // 2] if ready else 0:.1f} s, {p95:.1f} s", True),
    ]


@contextmanager
def database(kind: str) -> Iterator[str | None]:
    if kind == "sqlite":
        yield None
        return
    with postgresql() as url:
        yield url


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder to work in, which stays")
    given = parser.parse_args()
    with ExitStack() as stack:
        folder = given.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="faults-")))
        folder.mkdir(exist_ok=True)
        wanted = undisturbed(folder / "quiet")
        url = stack.enter_context(database(given.database))
        fired = folder / "fire"
        fired.mkdir()
        nodes = ("alone",) if url is None else ("one", "two")
        servers = [Server(fired, node, url) for node in nodes]
        for server in servers:
            stack.callback(lambda server=server: server.process.poll() is None and server.kill())
        fire = Fire(fired, servers, random.Random(given.seed))  # noqa: S311 - no secret
        fire.begin(fire.submit, fire.upload, fire.look_for_doubles)
        fire.kill(given.kills)
        fire.settle()
        rows = report(fire, wanted, fired)
        slowest = max(server.stop() for server in servers)
        rows.append(("orderly end", f"{slowest:.1f} s", slowest < 30))
        command = [sys.executable, "-m", "ganserve", "fsck", "--state", str(fired / "state"), "--models", str(fired / "models")]
        environment = os.environ | {"PYTHONPATH": str(ROOT)} | ({"GANSERVE_DATABASE_URL": url} if url else {})
        said = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        rows.append(("ganserve fsck", said.stdout.strip().splitlines()[-1] if said.stdout else said.stderr, said.returncode == 0))
        if said.returncode:
            print(said.stdout, file=sys.stderr)
    print(f"| {given.database}, {len(nodes)} server{'s' if len(nodes) > 1 else ''} | | |\n|---|---|---|")
    for name, figure, holds in rows:
        print(f"| {name} | {figure} | {'' if holds else '**no**'} |")
    sys.exit(0 if all(holds for _, _, holds in rows) else 1)


if __name__ == "__main__":
    main()
