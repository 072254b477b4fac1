"""`ganserve jobs`: the training jobs of a server, or of the state folder here."""

import json
from typing import Annotated
from urllib.parse import quote

import httpx
from cyclopts import App, Parameter

from ganserve.connection import Connection, check

jobs_app = App(name="jobs", help="List, show, pause, resume, cancel, retry and remove the training jobs that were asked for over HTTP.")

JobId = Annotated[str, Parameter(help="A job of `ganserve jobs list`.")]


@jobs_app.command(name="list")
def list_(*, connection: Connection = Connection()) -> None:
    """List jobs, newest first."""

    async def question(client: httpx.AsyncClient) -> list[dict[str, object]]:
        jobs: list[dict[str, object]] = []
        after: str | None = ""
        while after is not None:
            page = check(await client.get("/jobs", params={"limit": 100, **({"after": after} if after else {})})).json()
            jobs += page["jobs"]
            after = page["next"]
        return jobs

    for job in connection.ask(question):
        progress, config = job["progress"], job["config"]
        assert isinstance(progress, dict)
        name = config["name"] if isinstance(config, dict) else "(config damaged)"
        print(f"{job['id']}  {job['state']:<9}  {progress['percent']:5.1f} %  {name}  {job['message']}")


@jobs_app.command
def show(id: JobId, /, *, connection: Connection = Connection()) -> None:
    """Show all of a job."""

    async def question(client: httpx.AsyncClient) -> httpx.Response:
        return check(await client.get(f"/jobs/{quote(id, safe='')}"))

    print(json.dumps(connection.ask(question).json(), indent=2))


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
