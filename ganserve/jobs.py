"""`ganserve jobs`: the training jobs of a server, or of the state folder here."""

import json
from typing import Annotated
from urllib.parse import quote

import httpx
from cyclopts import App, Parameter

from ganserve.connection import Connection, check

jobs_app = App(name="jobs", help="List, show and cancel the training jobs that were asked for over HTTP.")

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

    async def question(client: httpx.AsyncClient) -> httpx.Response:
        return check(await client.post(f"/jobs/{quote(id, safe='')}/cancel"))

    job = connection.ask(question).json()
    print(f"{job['id']}: {job['state']}, {job['message'] or 'asked to end'}")
