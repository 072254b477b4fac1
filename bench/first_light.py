"""From nothing to a trained, served model: by the command line, and over HTTP while images are asked for all the time.

    .venv/bin/python bench/first_light.py

Trains the mlp on the built-in set at its defaults, twice, in a folder that is thrown away, and prints one table.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from servers import GANSERVE, ROOT, Server

CONFIG = {"architecture": "mlp", "dataset": "fashion-mnist-10k"}
SECONDS_BETWEEN_REQUESTS = 0.2


def by_command_line(folder: Path, server: Server) -> tuple[float, str]:
    """Seconds until the server answers for what the command trained, and the worker's own words."""
    flags = [word for name, value in CONFIG.items() for word in (f"--{name}", value)]
    begin = time.monotonic()
    command = [GANSERVE, "train", "--name", "first", *flags, "--models", str(folder / "models"), "--state", str(folder / "other")]
    words = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    while httpx.post(f"{server.url}/generate", json={"model": "first"}, timeout=60).status_code != 200:
        time.sleep(0.05)
    return time.monotonic() - begin, words


def over_http(server: Server) -> tuple[float, str, list[float], int]:
    """Seconds until the job has succeeded, its words, how long each request for images took meanwhile, and how many failed."""
    milliseconds, failed = [], 0
    with httpx.Client(base_url=server.url, timeout=60) as client:
        begin = time.monotonic()
        location = client.post("/train", json=CONFIG | {"name": "second"}).raise_for_status().headers["location"]
        while (job := client.get(location).json())["state"] in ("queued", "running"):
            sent = time.monotonic()
            answer = client.post("/generate", json={"model": "digits", "num_images": 16, "seed": len(milliseconds)})
            milliseconds.append(1000 * (time.monotonic() - sent))
            failed += answer.status_code != 200
            time.sleep(SECONDS_BETWEEN_REQUESTS)
        seconds = time.monotonic() - begin
        client.post("/generate", json={"model": "second"}).raise_for_status()
    return seconds, job["message"], milliseconds, failed


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        server = Server(folder / "state", [folder / "models", ROOT / "models"])
        try:
            first, first_words = by_command_line(folder, server)
            second, second_words, milliseconds, failed = over_http(server)
        finally:
            server.stop()
    median, p95 = statistics.median(milliseconds), statistics.quantiles(milliseconds, n=20)[-1]
    print(f"{os.cpu_count()} cores; mlp on fashion-mnist-10k at its defaults, from nothing to a served model")
    print("| way | seconds | ended with | POST /generate meanwhile (16 images) |")
    print("|---|---|---|---|")
    print(f"| ganserve train | {first:.0f} | {first_words} | |")
    answered = f"{len(milliseconds) - failed} of {len(milliseconds)} answered"
    answers = f"{answered}; {median:.1f} ms median, {p95:.1f} ms p95, {max(milliseconds):.0f} ms max"
    print(f"| POST /train | {second:.0f} | {second_words} | {answers} |")


if __name__ == "__main__":
    main()
