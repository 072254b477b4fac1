"""`ganserve serve`."""

import sys
from dataclasses import replace
from typing import Annotated

from cyclopts import Parameter

from ganserve.places import Device, Repositories, State, Threads, settings


def serve(
    *,
    host: Annotated[str | None, Parameter(help="Address to listen on. GANSERVE_HOST, or 127.0.0.1.", show_default=False)] = None,
    port: Annotated[int | None, Parameter(help="Port; 0 takes a free one. GANSERVE_PORT, or 8000.", show_default=False)] = None,
    models: Repositories = (),
    state: State = None,
    device: Device = None,
    threads: Threads = None,
    allowed_host: Annotated[
        tuple[str, ...], Parameter(help="A name besides localhost that a request's Host may carry; repeat for more.")
    ] = (),
) -> int:
    """Serve every model of the repositories over HTTP, and train on request."""
    from app.server import run
    from app.settings import SettingsError, check_exposure

    found = settings(models, state, device, threads)
    if port is not None and not 0 <= port <= 65535:
        raise SettingsError(f"--port is {port}; 0 to 65535 is allowed")
    found = replace(
        found,
        host=host or found.host,
        port=port if port is not None else found.port,
        allowed_hosts=found.allowed_hosts + tuple(name.lower() for name in allowed_host),
    )
    check_exposure(found)
    return run(found, sys.stdout)
