"""The directory of a training run: what the worker writes and the service reads.

    config.json    the TrainConfig, every default resolved; only its total_images ever grows
    status.json    the JobStatus, replaced whole
    metrics.jsonl  one Metrics a line
    events.jsonl   what happened, in order (training.files.events)
    summary.png    curves, findings and samples in one picture
    events/        the same for tensorboard, where it is installed
    samples/       grids of the fixed latents, <images>.png
    checkpoints/   the last two, <images>/
    best/          the state that was evaluated best, and the one before it, <images>/
    log.txt        what the worker said
    lock           held by the worker as long as it lives
    attempt        the number of the attempt whose worker may write; another's ends without a word
    deaths.json    of workers since the last checkpoint
    cancel         there once someone has asked the run to end
    stop           there once someone has asked its worker to end; its next start takes it away
    pause          there once someone has asked the service not to start it again
    request.json   by what key of its own a client asked for the run, where it named one, and for what

The directory is the truth: whoever finds it knows all there is to know of the run.
"""

import json
import secrets
from datetime import UTC, datetime
from pathlib import Path

from training.contract import JobStatus, Metrics, Progress, TrainConfig, now
from training.files import events
from training.files.directories import commit, staging, write_atomically

CONFIG, STATUS, METRICS, LOG = "config.json", "status.json", "metrics.jsonl", "log.txt"
CANCEL, STOP, PAUSE = "cancel", "stop", "pause"
CHECKPOINTS, BEST, SAMPLES = "checkpoints", "best", "samples"
CHECKPOINT_CARD = "checkpoint.json"  # of each state in the first two
SUMMARY, REQUEST = "summary.png", "request.json"
ATTEMPT, DEATHS = "attempt", "deaths.json"


def new_id() -> str:
    """Sorted by time, and not to be guessed: 20261122-104500-9f3c2a7b41d0."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(6)}"


def create(folder: Path, config: TrainConfig, id: str, request: bytes | None = None, *, priority: int = 0, place: int = 0) -> JobStatus:
    """Make a run directory, durable and whole before it is seen; its state is queued.

    Args:
        config: resolved.
        id: a new one; the version that the run publishes will name it.
        request: the bytes of request.json.
        priority, place: in the queue of a service.

    Raises:
        FileExistsError: the directory is there already.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    progress = Progress(total_images=config.total_images)
    status = JobStatus(id=id, state="queued", progress=progress, priority=priority, place=place, created_at=now())
    with staging(folder.parent) as staged:
        write_atomically(staged / CONFIG, config.model_dump_json(indent=2).encode())
        enter_state(staged, status)
        if request is not None:
            write_atomically(staged / REQUEST, request)
        (staged / METRICS).touch()
        (staged / LOG).touch()
        (staged / SAMPLES).mkdir()
        (staged / CHECKPOINTS).mkdir()
        (staged / BEST).mkdir()
        commit(staged, folder)
    return status


def train_on(folder: Path, config: TrainConfig) -> None:
    """Let a run go on to more images, whatever its state is. For who holds its lock."""
    write_atomically(folder / CONFIG, config.model_dump_json(indent=2).encode())
    status = read_status(folder)
    progress = status.progress.model_copy(update={"total_images": config.total_images})
    enter_state(folder, status.model_copy(update={"state": "queued", "progress": progress, "message": "", "finished_at": None}))


def read_config(folder: Path) -> TrainConfig:
    return TrainConfig.model_validate_json((folder / CONFIG).read_bytes())


def read_status(folder: Path) -> JobStatus:
    written = (folder / STATUS).read_bytes()
    if b'"num_threads"' in written and b'"tuning"' not in written:  # begun before a layout was chosen too
        values = json.loads(written)
        values["tuning"] = {"num_threads": values.pop("num_threads"), "memory_layout": "contiguous"}
        written = json.dumps(values).encode()
    return JobStatus.model_validate_json(written)


def write_status(folder: Path, status: JobStatus) -> None:
    """Of a run that goes on as it was; see `enter_state`."""
    write_atomically(folder / STATUS, status.model_dump_json(indent=2).encode())


def enter_state(folder: Path, status: JobStatus) -> None:
    """Write a status whose state is another than before, and tell of it."""
    write_status(folder, status)
    events.tell_state(folder, status)


def append_metrics(folder: Path, metrics: Metrics) -> None:
    with (folder / METRICS).open("a", encoding="utf-8") as file:
        file.write(metrics.model_dump_json() + "\n")
    events.append(folder, "metrics", metrics)


def truncate_metrics(folder: Path, images: int) -> None:
    """Drop the lines past a checkpoint, which the resumed run writes again; a line cut by a crash goes too."""
    lines = (folder / METRICS).read_text(encoding="utf-8").splitlines(keepends=True)
    kept = []
    for line in lines:
        if not line.endswith("\n") or Metrics.model_validate_json(line).images > images:
            break
        kept.append(line)
    write_atomically(folder / METRICS, "".join(kept).encode())


def sample_path(folder: Path, images: int) -> Path:
    return folder / SAMPLES / f"{images:012d}.png"


def sample_images(folder: Path, at_most: int | None = None) -> list[int]:
    """Of how many images there are grids, ascending; of many `at_most`, evenly spaced, the first and the last among them."""
    known = sorted(int(path.stem) for path in (folder / SAMPLES).glob("*.png") if path.stem.isdecimal())
    if at_most is None or len(known) <= at_most:
        return known
    return [known[round(place * (len(known) - 1) / (at_most - 1))] for place in range(at_most)]


def ask_to_cancel(folder: Path) -> None:
    """Leave the wish where it outlives every process: the worker sees it within a second, or before it starts."""
    (folder / CANCEL).touch()


def is_cancel_asked(folder: Path) -> bool:
    return (folder / CANCEL).exists()


def ask_to_stop(folder: Path) -> None:
    """Ask a worker, whoever started it, to end with a checkpoint; the run goes on another time."""
    (folder / STOP).touch()


def is_stop_asked(folder: Path) -> bool:
    return (folder / STOP).exists() or is_pause_asked(folder)


def ask_to_pause(folder: Path) -> None:
    """Leave the wish that its worker ends with a checkpoint, and none is started before someone asks for it."""
    (folder / PAUSE).touch()


def is_pause_asked(folder: Path) -> bool:
    return (folder / PAUSE).exists()


def forget_pause(folder: Path) -> None:
    """The wish to wait is fulfilled."""
    for name in (PAUSE, STOP):
        (folder / name).unlink(missing_ok=True)


def forget_wishes(folder: Path) -> None:
    """Nobody wants the run to end or to wait any more."""
    for name in (CANCEL, STOP, PAUSE):
        (folder / name).unlink(missing_ok=True)


def grant(folder: Path, attempt: int) -> None:
    """Let this attempt's worker write, and no other's."""
    write_atomically(folder / ATTEMPT, str(attempt).encode())


def granted(folder: Path) -> int:
    """The number of the last attempt that was granted; 0 before the first."""
    path = folder / ATTEMPT
    return int(path.read_bytes()) if path.exists() else 0


def is_granted(folder: Path, attempt: int | None) -> bool:
    """Whether an attempt's worker may write; one without a number always may."""
    return attempt in (None, granted(folder))


def count_death(folder: Path) -> int:
    """Workers that have died since the last checkpoint, with this one."""
    path, kept = folder / DEATHS, checkpoint_images(folder)
    before = json.loads(path.read_bytes()) if path.exists() else {}
    num_deaths: int = before["deaths"] + 1 if before.get("images") == kept else 1
    write_atomically(path, json.dumps({"images": kept, "deaths": num_deaths}).encode())
    return num_deaths


def forget_deaths(folder: Path) -> None:
    (folder / DEATHS).unlink(missing_ok=True)


def read_metrics(folder: Path) -> list[Metrics]:
    """All whole lines of metrics, oldest first."""
    lines = (folder / METRICS).read_text(encoding="utf-8").splitlines(keepends=True)
    return [Metrics.model_validate_json(line) for line in lines if line.endswith("\n")]


def checkpoint_images(folder: Path) -> int:
    """Images at the newest checkpoint: what no death can take back; 0 where there is none."""
    return max((int(path.name) for path in (folder / CHECKPOINTS).glob("*") if path.name.isdecimal()), default=0)
