"""Whether who asks for little is kept waiting by who asks for much.

    .venv/bin/python bench/serving/fairness.py          about 20 minutes on 2 idle cores

One client asks for 1 image at a time and two ask for 256, first for themselves, then beside each other. Wanted: the first one's p99 within
2.5 times of its value alone, or 10 ms more, and the others keep 80 % of their requests a second.
"""

import subjects
import wrk
from peers import BODY, CASES, span
from running import Server, options, ours, table

BULK = 2  # connections
IMAGES = 256


def main() -> None:
    parser = options(__doc__, seconds=60)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    repository = subjects.repository(given.cache)
    heads = ("model", "p99 alone, ms", "p99 beside, ms", "times (2.5)", "more, ms (10)")
    print(table(*heads, "256 alone, requests/s", "beside", "kept (0.8)"))
    for case in CASES:
        rounds = []
        for _ in range(given.rounds):
            with ours(repository, given.server_core) as server:
                rounds.append(measure(server, case.model, given.seconds, given.load_core))
        p99 = [(alone.p99_ms, beside.p99_ms) for alone, beside, _, _ in rounds]
        rates = [(alone.rate, beside.rate) for _, _, alone, beside in rounds]
        cells = [span([alone for alone, _ in p99], 1), span([beside for _, beside in p99], 1)]
        cells += [span([beside / alone for alone, beside in p99], 2), span([beside - alone for alone, beside in p99], 1)]
        cells += [span([alone for alone, _ in rates], 1), span([beside for _, beside in rates], 1)]
        cells += [span([beside / alone for alone, beside in rates], 2)]
        print(f"| {case.model} | {' | '.join(cells)} |", flush=True)


def measure(server: Server, model: str, seconds: float, core: int) -> tuple[wrk.Load, wrk.Load, wrk.Load, wrk.Load]:
    """The small client's load alone and beside the others, and theirs alone and beside it."""
    small, large = (BODY.replace("MODEL", model).replace("COUNT", str(count)) for count in (1, IMAGES))
    server.wait_for("/generate", large.replace("SEED", "0"))
    alone = wrk.run(server, "/generate", small, 1, seconds, core)
    bulk_alone = wrk.run(server, "/generate", large, BULK, seconds, core)
    running = wrk.start(server, "/generate", large, BULK, seconds, core)
    beside = wrk.run(server, "/generate", small, 1, seconds, core)
    bulk_beside = wrk.finish(running)
    return alone.checked(), beside.checked(), bulk_alone.checked(), bulk_beside.checked()


if __name__ == "__main__":
    main()
