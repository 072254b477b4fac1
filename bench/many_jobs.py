"""A state folder of 10,000 finished jobs: how long a server takes to start with it, and to answer GET /jobs.

    .venv/bin/python bench/many_jobs.py                  about a minute on 2 cores
    .venv/bin/python bench/many_jobs.py --jobs 100000

A start is counted from the import of torch on, which takes the same with no job at all. The first start finds no index, and makes it of
the jobs' directories; the second finds it.
"""

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import httpx

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "tests")]
from servers import Server  # noqa: E402

from training import catalog  # noqa: E402
from training.contract import TrainConfig, now  # noqa: E402
from training.files import runs  # noqa: E402

REQUESTS = 500
QUESTIONS = {
    "the newest 20": "/jobs",
    "the newest 100": "/jobs?limit=100",
    "20 of a state": "/jobs?state=failed",
    "20 of a model, in the middle": "/jobs?model=model-3&after={middle}",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=10_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="many-jobs-") as temporary:
        folder = Path(temporary)
        (folder / "none").mkdir()
        without = min(started(folder / "none" / "state", folder / "none" / "models")[0] for _ in range(2))
        ids = make(folder / "state" / "jobs", given.jobs)
        print(f"| {given.jobs:,} finished jobs | |\n|---|---|")
        first, server = started(folder / "state", folder / "models")
        server.stop()
        second, server = started(folder / "state", folder / "models", keep=True)
        print(f"| start without jobs | {without:.2f} s |")
        print(f"| more with them, no index yet | {first - without:.2f} s |")
        print(f"| more with them and their index | {second - without:.2f} s |")
        with httpx.Client(base_url=server.url) as client:
            for name, question in QUESTIONS.items():
                path = question.format(middle=ids[len(ids) // 2])
                times = sorted(1000 * timed(client, path) for _ in range(REQUESTS))
                print(f"| GET {name}, median and p99 | {statistics.median(times):.1f}, {times[int(0.99 * REQUESTS)]:.1f} ms |")
        server.stop()


def started(state: Path, models: Path, *, keep: bool = False) -> tuple[float, Server]:
    begin = time.perf_counter()
    server = Server(state, [models])
    seconds = time.perf_counter() - begin
    if not keep:
        server.stop()
    return seconds, server


def timed(client: httpx.Client, path: str) -> float:
    begin = time.perf_counter()
    client.get(path).raise_for_status()
    return time.perf_counter() - begin


def make(folder: Path, num_jobs: int) -> list[str]:
    """Jobs that have ended, all of them like one that did."""
    config = catalog.resolve(TrainConfig.model_validate({"architecture": "mlp", "num_evaluated": 0}), folder.parent / "datasets", ())
    like = folder.parent / "like"
    status = runs.create(like, config, runs.new_id())
    ids = []
    for number in range(num_jobs):
        id = f"20260101-{number // 3600 % 24:02}{number // 60 % 60:02}{number % 60:02}-{number:012x}"
        shutil.copytree(like, folder / id)
        state = ("succeeded", "failed", "cancelled")[number % 3]
        (folder / id / runs.CONFIG).write_text(config.model_copy(update={"name": f"model-{number % 10}"}).model_dump_json(indent=2))
        ended = status.model_copy(update={"id": id, "state": state, "place": number, "attempts": 1, "finished_at": now()})
        (folder / id / runs.STATUS).write_text(ended.model_dump_json(indent=2))
        ids.append(id)
    shutil.rmtree(like)
    return ids


if __name__ == "__main__":
    main()
