"""`ganserve tune`: what is fastest on this machine, measured, and kept for the servers that start here."""

from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from ganserve.places import Device, Repositories, State, Threads, settings
from training.contract import UserError

if TYPE_CHECKING:
    from app.settings import Settings
    from app.tuning import Row, Tuning

HEADINGS = ("model", "module", "back end", "threads", "rows", "ms", "rows", "images/s", "")


def tune(
    *,
    seconds: Annotated[float, Parameter(help="What the measurement may take.", validator=Number(gte=1, lte=3600))] = 60.0,
    dry_run: Annotated[bool, Parameter(help="Print what would be chosen; change nothing.")] = False,
    reset: Annotated[bool, Parameter(help="Measure nothing, and forget what was chosen before.")] = False,
    models: Repositories = (),
    state: State = None,
    device: Device = None,
    threads: Threads = None,
) -> None:
    """Measure how each model runs fastest here (back end, threads, batch sizes), and choose that for servers of this --state.

    What is chosen takes effect at a server's next start, and gives its images other last bits. Flags and environment go before it.
    """
    found = settings(models, state, device, threads)
    if reset:
        _reset(found, dry_run=dry_run)
        return
    from app import choices, tuning

    tuned = tuning.measure(found, seconds)
    if not tuned.rows:
        raise UserError(f"nothing was measured: {'; '.join(tuned.left_out) or 'there is no model here'}")
    _print(tuned)
    if dry_run:
        return
    try:
        choices.write(found.state, tuned.choices)
    except OSError as error:
        raise UserError(f"--state {found.state} cannot be written into: {error.strerror}; choose another") from error
    print(f"{found.state / choices.FILE} holds the choice, for servers that start from now on; `ganserve tune --reset` takes it back")


def _reset(found: "Settings", *, dry_run: bool) -> None:
    from app import choices

    if dry_run:
        raise UserError("--reset and --dry-run do not go together: leave one out")
    try:
        was_there = choices.forget(found.state)
    except OSError as error:
        raise UserError(f"{found.state / choices.FILE} cannot be removed: {error.strerror}") from error
    print("servers that start from now on run as usual" if was_there else "nothing was chosen, and servers run as usual")


def _print(tuned: "Tuning") -> None:
    lines = [HEADINGS, *(_cells(row, is_chosen=row in tuned.chosen) for row in tuned.rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        words = line[:3], line[3:-1]
        left = (f"{cell:<{width}}" for cell, width in zip(words[0], widths[:3], strict=True))
        right = (f"{cell:>{width}}" for cell, width in zip(words[1], widths[3:-1], strict=True))
        print("  ".join([*left, *right, line[-1]]).rstrip())
    for sentence in tuned.left_out:
        print(sentence)


def _cells(row: "Row", *, is_chosen: bool) -> tuple[str, ...]:
    """The fewest rows and how long they take, the best number and how many images a second that gives."""
    alone, many = 1000 * row.seconds[row.smallest], 1 / row.seconds_an_image(row.best)
    numbers = (str(row.threads), str(row.smallest), f"{alone:.3g}", str(row.best), f"{many:,.0f}")
    return (row.model, row.module, row.backend, *numbers, "chosen" if is_chosen else "")
