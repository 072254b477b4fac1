"""The options that several commands share: where models, data and jobs lie, and which server to ask."""

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

if TYPE_CHECKING:
    from app.settings import Settings

Repositories = Annotated[
    tuple[Path, ...],
    Parameter(
        name="--models",
        consume_multiple=True,
        show_default=False,
        help=f"Model repositories; the first is written to. GANSERVE_MODELS (separated by {os.pathsep!r}), or `models`.",
    ),
]
State = Annotated[
    Path | None, Parameter(name="--state", help="Folder of data sets, jobs and runs. GANSERVE_STATE, or `state`.", show_default=False)
]
Device = Annotated[
    str | None, Parameter(help="auto, cpu, cuda, cuda:1, mps. GANSERVE_DEVICE, or auto: the first GPU, else the CPU.", show_default=False)
]
Threads = Annotated[
    int | None,
    Parameter(
        help="Intra-op threads. GANSERVE_THREADS, or half the cores to serve, all but one to train; another number, other last bits.",
        show_default=False,
    ),
]


def settings(models: tuple[Path, ...], state: Path | None, device: str | None = None, threads: int | None = None) -> "Settings":
    """The environment's settings, with what the command line says in their place."""
    from app.settings import SettingsError, from_environment

    found = from_environment()
    if threads is not None and threads < 1:
        raise SettingsError(f"--threads is {threads}; at least 1 is allowed")
    return replace(
        found,
        models=models or found.models,
        state=state or found.state,
        device=device or found.device,
        threads=threads if threads is not None else found.threads,
    )
