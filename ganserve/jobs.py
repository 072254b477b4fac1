"""`ganserve jobs`: the training jobs of a server, or of the state folder here."""

import asyncio
import json
from typing import Annotated, Any
from urllib.parse import quote

import httpx
from cyclopts import App, Parameter

from ganserve.connection import Connection, check
from training.contract import FINISHED, JobState, JobStatus, Progress, TrainConfig

SECONDS_BETWEEN_LOOKS = 0.5

jobs_app = App(
    name="jobs", help="The training jobs that were asked for over HTTP: list, show, watch, pause, resume, cancel, retry, remove."
)

JobId = Annotated[str, Parameter(help="A job of `ganserve jobs list`.")]


@jobs_app.command(name="list")
def list_(
    *,
    wanted: Annotated[tuple[JobState, ...], Parameter(name="--state", help="Jobs in this state; repeat for more.")] = (),
    model: Annotated[str | None, Parameter(help="Jobs that publish under this name.", show_default=False)] = None,
    connection: Connection = Connection(),
) -> None:
    """List jobs, newest first."""
    filters = {"state": wanted, **({} if model is None else {"model": model})}

    async def question(client: httpx.AsyncClient) -> list[dict[str, object]]:
        jobs: list[dict[str, object]] = []
        after: str | None = ""
        while after is not None:
            page = check(await client.get("/jobs", params={"limit": 100, **filters, **({"after": after} if after else {})})).json()
            jobs += page["jobs"]
            after = page["next"]
        return jobs

    for job in connection.ask(question):
        progress, config = job["progress"], job["config"]
        assert isinstance(progress, dict)
        name = config["name"] if isinstance(config, dict) else "(config damaged)"
        place = f"number {job['position']} in the queue" if job["position"] else ""
        print(f"{job['id']}  {job['state']:<9}  {progress['percent']:5.1f} %  {name}  {job['message'] or place}")


@jobs_app.command
def show(id: JobId, /, *, connection: Connection = Connection()) -> None:
    """Show all of a job."""

    async def question(client: httpx.AsyncClient) -> httpx.Response:
        return check(await client.get(f"/jobs/{quote(id, safe='')}"))

    print(json.dumps(connection.ask(question).json(), indent=2))


@jobs_app.command
def watch(id: JobId, /, *, connection: Connection = Connection()) -> int:
    """Tell of a job as it goes, until it ends or is paused: a bar on a terminal, a line now and then elsewhere."""
    from ganserve.progress import telling

    async def question(client: httpx.AsyncClient) -> JobStatus:
        state, num_told = "", 0
        with telling() as listener:
            while True:
                job = check(await client.get(f"/jobs/{quote(id, safe='')}")).json()
                status = _status(job)
                if state != status.state == "running" and job["config"] is not None:
                    listener.started(TrainConfig.model_validate_json(json.dumps(job["config"])), status.progress.images)
                for finding in status.findings[num_told:]:
                    listener.found(finding)
                state, num_told = status.state, len(status.findings)
                if state in {*FINISHED, "paused"}:
                    return status
                if state == "running":
                    listener.progressed(status)
                await asyncio.sleep(SECONDS_BETWEEN_LOOKS)

    status = connection.ask(question)
    print(f"{id}: {status.state}, {status.message}")
    return 1 if status.state == "failed" else 0


def _status(job: dict[str, Any]) -> JobStatus:
    """What the run's own status says, out of the answer."""
    progress = {name: job["progress"][name] for name in Progress.model_fields}
    known = {name: job[name] for name in JobStatus.model_fields.keys() & job.keys()}
    return JobStatus.model_validate_json(json.dumps(known | {"progress": progress}))


@jobs_app.command
def cancel(id: JobId, /, *, connection: Connection = Connection()) -> None:
    """End a job; a running one keeps its last checkpoint."""
    _change(id, "cancel", "asked to end", connection)


@jobs_app.command
def pause(id: JobId, /, *, connection: Connection = Connection()) -> None:
    """Let a job wait; a running one keeps a checkpoint."""
    _change(id, "pause", "asked to pause", connection)


@jobs_app.command
def resume(id: JobId, /, *, connection: Connection = Connection()) -> None:
    """Go on with a paused job, at the end of the queue."""
    _change(id, "resume", "in the queue", connection)


@jobs_app.command
def retry(id: JobId, /, *, connection: Connection = Connection()) -> None:
    """Go on with a failed or cancelled job from its last checkpoint, at the end of the queue."""
    _change(id, "retry", "in the queue", connection)


@jobs_app.command
def remove(id: JobId, /, *, connection: Connection = Connection()) -> None:
    """Remove a job that is not going to run from the disk; what it published stays."""

    async def question(client: httpx.AsyncClient) -> httpx.Response:
        return check(await client.delete(f"/jobs/{quote(id, safe='')}"))

    connection.ask(question)
    print(f"{id}: removed")


def _change(id: str, what: str, done: str, connection: Connection) -> None:
    async def question(client: httpx.AsyncClient) -> httpx.Response:
        return check(await client.post(f"/jobs/{quote(id, safe='')}/{what}"))

    job = connection.ask(question).json()
    print(f"{job['id']}: {job['state']}, {job['message'] or done}")
