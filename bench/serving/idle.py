"""What a server costs that nobody asks, and how soon it answers after its start.

    .venv/bin/python bench/serving/idle.py          about 3 minutes on 2 idle cores

Ten models, the server on one core. Wanted: under 0.5 % of that core while nothing comes; the first answer, by the model that a start comes
to last, within 1 s of what importing torch takes there, and all ten behind it.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import subjects
from peers import BODY, span
from running import Server, options, ours, pinned, table

NUM_MODELS = 10
SETTLE_SECONDS = 5
EVERY = 0.01  # how often a starting server is asked


def main() -> None:
    parser = options(__doc__, seconds=30)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    models = ten_models(given.cache)
    last = sorted(path.name for path in models.iterdir())[-1]
    imports, firsts, alls = [], [], []
    for _ in range(given.rounds):
        imports.append(importing(given.server_core))
        with ours(models, given.server_core, ready=False) as server:
            first, every = start(server, last)
        firsts.append(first)
        alls.append(every)
    with ours(models, given.server_core) as server:
        time.sleep(SETTLE_SECONDS)
        used, begin = server.cpu_seconds(), time.perf_counter()
        time.sleep(given.seconds)
        share = (server.cpu_seconds() - used) / (time.perf_counter() - begin)
        memory = server.memory_mb()
    print(table("import torch, s", "first answer, s", "apart (1.0)", f"all {NUM_MODELS} ready, s", "idle, % of a core (0.5)", "memory, MB"))
    apart = [first - importing for first, importing in zip(firsts, imports, strict=True)]
    print(f"| {' | '.join(span(values, 2) for values in (imports, firsts, apart, alls))} | {100 * share:.2f} | {memory:.0f} |")


def ten_models(cache: Path) -> Path:
    folder = cache / "ten-models"
    for index in range(NUM_MODELS):
        subjects.copy((subjects.DIGITS, subjects.FASHION)[index % 2], folder, f"model-{index}")
    return folder


def importing(core: int) -> float:
    begin = time.perf_counter()
    subprocess.run([*pinned(core), sys.executable, "-c", "import torch"], check=True)
    return time.perf_counter() - begin


def start(server: Server, model: str) -> tuple[float, float]:
    """Seconds from the start to the first answer, and until all models are ready."""
    server.wait_for("/generate", BODY.replace("MODEL", model).replace("COUNT", "1").replace("SEED", "0"), EVERY)
    first = time.perf_counter() - server.started
    server.wait_until(lambda: server.get("/readyz")[0] == 200, EVERY)
    every = time.perf_counter() - server.started
    listed = json.loads(server.get("/readyz")[1])["models"]
    if len(listed) != NUM_MODELS:
        raise RuntimeError(f"/readyz lists {listed}")
    return first, every


if __name__ == "__main__":
    main()
