"""Training jobs: begun, watched, waited for, ended."""

from collections.abc import Callable
from urllib.parse import quote
from uuid import uuid4

from PIL import Image
from pydantic import JsonValue

from app.client.errors import JobFailed, NoAnswer, Refused
from app.client.pictures import opened
from app.client.steps import SECONDS_WITHOUT_SERVER, Call, Pause, Steps, ask, read
from app.schemas.training import Job, JobMetrics, Jobs
from training.contract import TrainConfig

SECONDS_BETWEEN_LOOKS = 0.5
LOG_BYTES = 2000  # of the log of a job that failed
_PAGE = 100  # the most that the server gives at a time


def train(config: TrainConfig | None = None, *, key: str | None = None, priority: int | None = None, **fields: JsonValue) -> Steps[Job]:
    """Begin to train a model.

    Args:
        config: what to train. In its place, or beside it where it goes first, its fields by name: `architecture="cgan"`.
        key: a name of your own for this job: asked for again with it, it is the same job. The request has one of its own in any case, so
            that no lost connection makes two jobs of it.
        priority: -100 to 100; jobs of a higher one go first.
    """
    said = {} if config is None else config.model_dump(mode="json", exclude_unset=True)
    params = {} if priority is None else {"priority": priority}
    call = Call("POST", "/train", params=params, json=fields | said, headers={"Idempotency-Key": key or uuid4().hex})
    return (yield from read(Job, call))


def job(job: Job | str) -> Steps[Job]:
    """How a job stands now."""
    return (yield from read(Job, Call("GET", path_of(job))))


def jobs(limit: int | None = None) -> Steps[list[Job]]:
    """Every job, or the newest ones; newest first."""
    found: list[Job] = []
    params: dict[str, str | int] = {}
    while limit is None or len(found) < limit:
        size = _PAGE if limit is None else min(_PAGE, limit - len(found))
        page = yield from read(Jobs, Call("GET", "/jobs", params={"limit": size} | params))
        found += page.jobs
        if page.next is None:
            break
        params = {"after": page.next}
    return found


def wait(job: Job | str, *, progress: Callable[[Job], None] | None = None) -> Steps[Job]:
    """The job once it has succeeded: its `model` is served then. A server that is started anew meanwhile is waited for too.

    Args:
        progress: told of the job about twice a second; `app.client.bar` draws one.

    Raises:
        JobFailed: it failed, was cancelled, or is paused.
    """
    missed = 0.0
    while True:
        try:
            seen = yield from read(Job, Call("GET", path_of(job)))
        except NoAnswer:
            missed += SECONDS_BETWEEN_LOOKS
            if missed > SECONDS_WITHOUT_SERVER:
                raise
        else:
            missed = 0.0
            if progress is not None:
                progress(seen)
            if seen.state == "succeeded":
                return seen
            if seen.state in ("failed", "cancelled", "paused"):
                raise JobFailed(seen, (yield from _end_of_log(seen)))
        yield Pause(SECONDS_BETWEEN_LOOKS)


def _end_of_log(job: Job) -> Steps[str]:
    try:
        return (yield from log(job, num_bytes=LOG_BYTES))
    except Refused:  # it never began, or was removed a moment ago
        return ""


def cancel(job: Job | str) -> Steps[Job]:
    """End it; its last checkpoint is kept."""
    return (yield from _change(job, "cancel"))


def pause(job: Job | str) -> Steps[Job]:
    """Let it wait, with a checkpoint."""
    return (yield from _change(job, "pause"))


def resume(job: Job | str) -> Steps[Job]:
    """Go on with a paused one."""
    return (yield from _change(job, "resume"))


def retry(job: Job | str) -> Steps[Job]:
    """Go on with a failed or cancelled one."""
    return (yield from _change(job, "retry"))


def _change(job: Job | str, what: str) -> Steps[Job]:
    return (yield from read(Job, Call("POST", f"{path_of(job)}/{what}", repeatable=False)))


def remove(job: Job | str) -> Steps[None]:
    """Take a job that is not going to run from the server's disk; what it published stays."""
    yield from ask(Call("DELETE", path_of(job)))


def metrics(job: Job | str, *, after: int | None = None) -> Steps[JobMetrics]:
    """What it has measured, of more than `after` images; and of how many images there are samples."""
    return (yield from read(JobMetrics, Call("GET", f"{path_of(job)}/metrics", params={} if after is None else {"after": after})))


def samples(job: Job | str, *, images: int | None = None) -> Steps[Image.Image]:
    """The grid of the fixed latents after so many images; the newest, where none are named."""
    name = "samples.png" if images is None else f"samples/{images}.png"
    return opened((yield from ask(Call("GET", f"{path_of(job)}/{name}"))).content)


def summary(job: Job | str) -> Steps[Image.Image]:
    """The job in one picture: curves, samples through time, findings."""
    return opened((yield from ask(Call("GET", f"{path_of(job)}/summary.png"))).content)


def log(job: Job | str, *, num_bytes: int | None = None) -> Steps[str]:
    """The end of its log, in whole lines."""
    params = {} if num_bytes is None else {"num_bytes": num_bytes}
    return (yield from ask(Call("GET", f"{path_of(job)}/log", params=params))).text


def path_of(job: Job | str) -> str:
    return f"/jobs/{quote(job.id if isinstance(job, Job) else job, safe='')}"
