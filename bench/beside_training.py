"""What a training job costs those who ask for images, and how soon it ends when it is told to.

    .venv/bin/python bench/beside_training.py        about 6 minutes on 2 cores

One server with the demo models. `/generate` of 16 digits is asked 400 times in a row, in turns without and with a job that trains (three
rounds of each): the median and the 99th percentile of each, and their ratio. Then jobs are cancelled in the midst of their training: how
long until the worker is gone, and whether it has kept a checkpoint. At last SIGTERM, with a job that trains and 50 watchers connected:
how long until the server is gone, and what the watchers heard last.
"""

import argparse
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "tests")]
from servers import Server  # noqa: E402

from training.files import runs  # noqa: E402

REQUESTS, ROUNDS, CANCELLED, WATCHERS = 400, 3, 10, 50
BODY = {"model": "digits", "num_images": 16, "seed": 7}
TRAINING: dict[str, Any] = {"architecture": "dcgan", "name": "beside", "total_images": 10**9, "num_evaluated": 0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="beside-") as temporary:
        state = Path(temporary) / "state"
        server = Server(state, [Path(temporary) / "models", ROOT / "models"])
        with httpx.Client(base_url=server.url, timeout=120) as client:
            print("| | median | p99 |\n|---|---|---|")
            beside(client)
            print("\n| | |\n|---|---|")
            cancelling(client, state / "jobs")
            ending(server, client)


def beside(client: httpx.Client) -> None:
    asked(client, REQUESTS)  # warm
    idle, busy = list[float](), list[float]()
    for _ in range(ROUNDS):
        idle += asked(client, REQUESTS)
        job = training(client)
        busy += asked(client, REQUESTS)
        gone(client, job)
    for name, times in (("alone", idle), ("beside a job", busy)):
        print(f"| {name} | {1000 * statistics.median(times):.1f} ms | {1000 * percentile(times):.1f} ms |")
    print(f"| ratio | {statistics.median(busy) / statistics.median(idle):.2f} | {percentile(busy) / percentile(idle):.2f} |")


def cancelling(client: httpx.Client, jobs: Path) -> None:
    times, kept = [], 0
    for _ in range(CANCELLED):
        job = training(client)
        time.sleep(1.0)
        begin = time.perf_counter()
        client.post(f"/jobs/{job}/cancel").raise_for_status()
        while client.get(f"/jobs/{job}").json()["state"] != "cancelled":
            time.sleep(0.02)
        times.append(time.perf_counter() - begin)
        kept += runs.checkpoint_images(jobs / job) > 0
    print(f"| cancelled, median and longest of {CANCELLED} | {statistics.median(times):.2f} s, {max(times):.2f} s |")
    print(f"| with a checkpoint kept | {kept} of {CANCELLED} |")


def ending(server: Server, client: httpx.Client) -> None:
    job, last = training(client), list[str]()

    def watch() -> None:
        with httpx.stream("GET", f"{server.url}/jobs/{job}/events", timeout=120) as answer:
            kinds = [line.removeprefix("event: ") for line in answer.iter_lines() if line.startswith("event: ")]
        last.append(kinds[-1])

    watchers = [threading.Thread(target=watch) for _ in range(WATCHERS)]
    for each in watchers:
        each.start()
    time.sleep(5.0)
    begin = time.perf_counter()
    code = server.stop()
    seconds = time.perf_counter() - begin
    for each in watchers:
        each.join()
    heard = ", ".join(f"{last.count(kind)} {kind}" for kind in sorted(set(last)))
    print(f"| SIGTERM with a job and {WATCHERS} watchers: gone after | {seconds:.1f} s, exit code {code} |")
    print(f"| the last that they heard | {heard} |")


def training(client: httpx.Client) -> str:
    """A job that has begun to train."""
    job: str = client.post("/train", json=TRAINING).raise_for_status().json()["id"]
    while client.get(f"/jobs/{job}").json()["progress"]["images"] == 0:
        time.sleep(0.1)
    return job


def gone(client: httpx.Client, job: str) -> None:
    client.post(f"/jobs/{job}/cancel").raise_for_status()
    while client.get(f"/jobs/{job}").json()["state"] != "cancelled":
        time.sleep(0.1)
    time.sleep(1.0)


def asked(client: httpx.Client, num_requests: int) -> list[float]:
    times = []
    for _ in range(num_requests):
        begin = time.perf_counter()
        client.post("/generate", json=BODY).raise_for_status()
        times.append(time.perf_counter() - begin)
    return times


def percentile(times: list[float]) -> float:
    return sorted(times)[int(0.99 * len(times))]


if __name__ == "__main__":
    main()
