"""Where a command's requests go: to the server that --server names, else to the same service inside this process."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, TypeVar

import httpx
from cyclopts import Parameter

from ganserve.places import Device, Repositories, State, Threads, settings
from training.contract import UserError

Answer = TypeVar("Answer")
IN_PROCESS = "http://localhost"
READY_SECONDS = 0.1  # between two looks whether the server is ready


@Parameter(name="*")
@dataclass(frozen=True)
class Connection:
    """Whom to ask."""

    server: Annotated[
        str | None,
        Parameter(
            env_var="GANSERVE_SERVER",
            help="Address of a running server, http://127.0.0.1:8000 say; else the models are loaded here. Its key: GANSERVE_API_KEY.",
        ),
    ] = None
    models: Repositories = ()
    state: State = None
    device: Device = None
    threads: Threads = None

    def ask(self, question: Callable[[httpx.AsyncClient], Awaitable[Answer]]) -> Answer:
        """Run the question with a client that is connected.

        Raises:
            UserError: no server answers there, or an option that would have no effect.
        """
        return asyncio.run(self._ask(question))

    async def _ask(self, question: Callable[[httpx.AsyncClient], Awaitable[Answer]]) -> Answer:
        try:
            async with self._client() as client:
                return await question(client)
        except httpx.InvalidURL as error:
            raise UserError(f"--server {self.server} is no address: {error}") from error
        except httpx.TransportError as error:
            raise UserError(f"no answer from {self.server}: {error}; is `ganserve serve` running there?") from error

    @asynccontextmanager
    async def _client(self) -> AsyncIterator[httpx.AsyncClient]:
        found = settings(self.models, self.state, self.device, self.threads)
        if self.server is not None:
            if not self.server.startswith(("http://", "https://")):
                raise UserError(f"--server {self.server} is no address: write http://{self.server}")
            if self.models or self.state or self.device or self.threads:
                raise UserError("--models, --state, --device and --threads are for models loaded here: leave them out with --server")
            headers = {} if found.api_key is None else {"Authorization": f"Bearer {found.api_key}"}
            async with httpx.AsyncClient(base_url=self.server, headers=headers, timeout=300) as client:
                yield client
            return
        from app.main import create_app

        app = create_app(replace(found, api_key=None, run_jobs=False, deadline_seconds=None))
        transport = httpx.ASGITransport(app)
        async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url=IN_PROCESS) as client:
            yield client


def check(response: httpx.Response) -> httpx.Response:
    """The response, if it is a success.

    Raises:
        UserError: the problem's own sentence.
    """
    if response.is_success:
        return response
    if response.status_code == httpx.codes.UNAUTHORIZED:
        raise UserError("the server wants its key, and GANSERVE_API_KEY is not it: set it, or GANSERVE_API_KEY_FILE")
    if response.headers.get("content-type") == "application/problem+json":
        raise UserError(response.json()["detail"])
    raise UserError(f"{response.request.url} answered {response.status_code} {response.reason_phrase}")


async def wait_until_loaded(client: httpx.AsyncClient) -> None:
    """Until the server has loaded its models.

    Raises:
        UserError: it is not well, and may never be done.
    """
    while '"status":"loading"' in (await client.get("/readyz")).text:  # a 503 of a proxy's says nothing of the kind
        check(await client.get("/healthz"))
        await asyncio.sleep(READY_SECONDS)


def write(path: Path, content: bytes) -> None:
    """Raises UserError where the file cannot be written."""
    try:
        path.write_bytes(content)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from error


def form_of(path: Path, forms: dict[str, str]) -> str:
    """The media type for a file's ending.

    Raises:
        UserError: an ending that no form has.
    """
    form = forms.get(path.suffix.lower())
    if form is None:
        raise UserError(f"{path} ends in {path.suffix!r}; the endings {', '.join(forms)} are allowed")
    return form
