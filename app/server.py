"""The real server: binds its port, says where the pages are, and serves until it is told to stop."""

import asyncio
import gc
import json
import signal
import socket
from collections.abc import Callable, Coroutine
from typing import TextIO

import uvicorn

from app import examples, logs
from app.main import create_app
from app.service import check
from app.settings import Settings, SettingsError

BACKLOG = 2048
YOUNG_OBJECTS = 50_000  # a request makes some hundreds, nearly all of which go without the collector
# of a connection between requests; uvicorn's 5 are fewer than the 60 that proxies and clients count on, whose next request would be lost
IDLE_SECONDS = 75
GRACE_SECONDS = 10  # for open requests at the end; without a bound an open event stream would hold the server for ever


def run(settings: Settings, out: TextIO) -> int:
    """Serve until SIGTERM or Ctrl-C.

    Args:
        out: where the address is printed once the first model answers.

    Raises:
        UserError: the address cannot be listened on, or the service cannot start.
    """
    logs.configure(settings.log_format)
    check(settings)
    listening = listen(settings)
    host, port = listening.getsockname()[:2]
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=GRACE_SECONDS,
        log_config=None,
        access_log=False,
        server_header=False,
    )

    async def greet() -> None:
        await app.state.service.store.has_first.wait()
        out.write(_greeting(host, port, examples.sampling(app.state.service.store), needs_key=settings.api_key is not None))
        out.flush()

    def stop() -> None:
        app.state.service.stop()

    server = _Server(config, greet, stop)
    _spare_collector()
    # uvicorn raises the signal that ended it once more, for whoever stands behind it; here that is nobody, and an orderly end is a 0
    signal.signal(signal.SIGTERM, lambda _number, _frame: None)
    try:
        server.run(sockets=[listening])
    finally:
        listening.close()
    return 0 if server.started else 1


def _spare_collector() -> None:
    """Python's collector looks at every object that it knows, now and then: at torch's modules for 100 ms, in which nobody is answered.
    What is here now stays to the end, and need not be looked at; models come later, and are."""
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, *gc.get_threshold()[1:])


def listen(settings: Settings) -> socket.socket:
    """A socket that listens on the settings' address; port 0 takes a free one.

    Raises:
        SettingsError: the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # the protocol is named because asyncio looks at it before it turns off Nagle's algorithm: without it, every answer on a kept
    # connection waits 40 ms for the client's delayed acknowledgement
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((settings.host.strip("[]"), settings.port))
        listening.listen(BACKLOG)
    except (OSError, OverflowError) as error:
        listening.close()
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise SettingsError(f"cannot listen on {settings.host} port {settings.port}: {reason}; choose another --port or --host") from error
    return listening


def _greeting(host: str, port: int, example: examples.Example | None, *, needs_key: bool) -> str:
    base = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    lines = [f"ganserve listens on {base}", f"  pages     {base}/docs (every route, to try)   {base}/models (what is served)"]
    if example is None:
        lines.append("  no model to sample from is here yet: train one with `ganserve train`, and it is served at once")
    else:
        key = ' -H "Authorization: Bearer $GANSERVE_API_KEY"' if needs_key else ""
        body = json.dumps({**example, "num_images": 16, "seed": 7})
        lines.append(f"  try       curl -o {example['model']}.png {base}/generate{key} -H 'Content-Type: application/json' -d '{body}'")
    return "\n".join(lines) + "\n"


class _Server(uvicorn.Server):
    """Greets beside its work, once it listens, and says so before it waits for the end of open requests."""

    def __init__(self, config: uvicorn.Config, greet: Callable[[], Coroutine[None, None, None]], stop: Callable[[], None]) -> None:
        super().__init__(config)
        self._greet, self._stop = greet, stop
        self._greeting: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if not self.should_exit:
            self._greeting = asyncio.create_task(self._greet())

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._stop()
        await super().shutdown(sockets)
