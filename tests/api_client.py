"""The service inside this process, asked as over HTTP; and what its answers hold."""

import base64
import io
import json
import zipfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, TypeVar

import httpx
import numpy as np
from anyio.from_thread import BlockingPortal, start_blocking_portal
from fastapi import FastAPI
from numpy.typing import NDArray
from PIL import Image

from app.main import create_app
from app.service import Service
from app.settings import Settings

Pixels = NDArray[np.uint8]
Headers = Mapping[str, str] | Sequence[tuple[str, str | bytes]]
Result = TypeVar("Result")
PADDING = 2
PROBLEM = "application/problem+json"


class Api:
    """A client of one application, whose event loop turns in a thread of its own, so that tests need not be coroutines."""

    def __init__(self, app: FastAPI, client: httpx.AsyncClient, portal: BlockingPortal) -> None:
        self.app, self._client, self._portal = app, client, portal

    @property
    def service(self) -> Service:
        service: Service = self.app.state.service
        return service

    def get(self, path: str, headers: Headers | None = None) -> httpx.Response:
        return self.send(self._client.build_request("GET", path, headers=headers))

    def post(
        self,
        path: str,
        json: object = None,
        *,
        content: bytes | AsyncIterator[bytes] | None = None,
        headers: Headers | None = None,
        data: Mapping[str, object] | None = None,
        files: Sequence[tuple[str, object]] | None = None,
    ) -> httpx.Response:
        return self.send(self.build("POST", path, json=json, content=content, headers=headers, data=data, files=files))

    def build(
        self,
        method: str,
        path: str,
        *,
        json: object = None,
        content: bytes | AsyncIterator[bytes] | None = None,
        headers: Headers | None = None,
        data: Mapping[str, object] | None = None,
        files: Sequence[tuple[str, object]] | None = None,
    ) -> httpx.Request:
        return self._client.build_request(method, path, json=json, content=content, headers=headers, data=data, files=files)

    def send(self, request: httpx.Request) -> httpx.Response:
        return self._portal.call(self._client.send, request)

    def begin_to_send(self, request: httpx.Request) -> "Future[httpx.Response]":
        return self.begin(self._client.send, request)

    def begin(self, work: Callable[..., Awaitable[Result]], *arguments: object) -> "Future[Result]":
        """Let it run on the application's event loop."""
        return self._portal.start_task_soon(work, *arguments)

    def call(self, work: Callable[[], Result]) -> Result:
        """On the application's event loop."""

        async def call() -> Result:
            return work()

        return self._portal.call(call)

    def refresh(self) -> None:
        """Look for new versions now, in place of within two seconds."""
        self._portal.call(self.service.store.refresh)


@contextmanager
def serving(settings: Settings, *, app: FastAPI | None = None, wait: bool = True) -> Iterator[Api]:
    """An application in its lifespan, its models loaded unless they are not waited for; an exception of its own is an answer of 500, as a
    client would see it."""
    app = app or create_app(settings)
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app, raise_app_exceptions=False), base_url="http://localhost", timeout=60)
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(app.router.lifespan_context(app)),
        portal.wrap_async_context_manager(client),
    ):
        api = Api(app, client, portal)
        if wait:
            api.refresh()
        yield api


# --- what answers hold --------------------------------------------------------------------------------------------------------


def refusal(response: httpx.Response, status: int) -> dict[str, Any]:
    """The problem document of a refusal, which is one whatever was asked."""
    assert response.status_code == status, f"{response.status_code}: {response.text[:500]}"
    assert response.headers["content-type"] == PROBLEM
    problem: dict[str, Any] = json.loads(response.content.decode("ascii"), parse_constant=_no_constant)
    assert problem["status"] == status
    assert problem["type"].startswith("/problems/")
    assert problem["title"]
    assert problem["detail"]
    assert "Traceback" not in response.text
    return problem


def pointers(problem: Mapping[str, Any]) -> list[str]:
    return [error["pointer"] for error in problem["errors"]]


def _no_constant(text: str) -> None:
    raise AssertionError(f"{text} is no JSON")


def picture(response: httpx.Response | bytes) -> Pixels:
    """(H, W) or (H, W, 3)."""
    if isinstance(response, httpx.Response):
        assert response.status_code == 200, response.text
        response = response.content
    return np.asarray(Image.open(io.BytesIO(response)))


def cells(sheet: Pixels, num: int, columns: int, size: int) -> Pixels:
    """The images of a grid: (num, size, size) or (num, size, size, 3)."""
    step = size + PADDING
    corners = [(index // columns * step, index % columns * step) for index in range(num)]
    return np.stack([sheet[top : top + size, left : left + size] for top, left in corners])


def frames(response: httpx.Response) -> list[Pixels]:
    """Every frame of an animation, as RGB."""
    assert response.status_code == 200, response.text
    image = Image.open(io.BytesIO(response.content))
    shown = []
    for index in range(getattr(image, "n_frames", 1)):
        image.seek(index)
        shown.append(np.asarray(image.convert("RGB")))
    return shown


def singles(response: httpx.Response) -> Pixels:
    """The single images of a ZIP, NPY or JSON answer, as `cells` gives them."""
    assert response.status_code == 200, response.text
    form = response.headers["content-type"]
    if form == "application/x-npy":
        array: Pixels = np.load(io.BytesIO(response.content), allow_pickle=False)
        return array[..., 0] if array.shape[-1] == 1 else array
    if form == "application/zip":
        archive = zipfile.ZipFile(io.BytesIO(response.content))
        assert archive.testzip() is None
        return np.stack([picture(archive.read(name)) for name in archive.namelist()])
    return np.stack([picture(base64.b64decode(image, validate=True)) for image in response.json()["images"]])


def png(pixels: Pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
