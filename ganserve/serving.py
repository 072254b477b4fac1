"""`ganserve serve`."""

import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from app.choices import Backend
from ganserve.places import Device, Repositories, State, Threads, settings

if TYPE_CHECKING:
    from app.settings import Settings


@Parameter(name="*")
@dataclass(frozen=True)
class Jobs:
    """Where the server's jobs run, and in what company; what is None is as the environment says."""

    jobs_at_once: Annotated[
        int | None,
        Parameter(
            help="Jobs that train at once. GANSERVE_JOBS_AT_ONCE, or one a GPU, one on a CPU.",
            show_default=False,
            validator=Number(gte=1, lte=64),
        ),
    ] = None
    training_memory_megabytes: Annotated[
        int | None,
        Parameter(
            help="What one job may take of the machine's memory; one that wants more fails. GANSERVE_TRAINING_MEMORY_MEGABYTES, or three"
            " quarters of it, shared by those that run at once.",
            show_default=False,
            validator=Number(gte=256, lte=10**7),
        ),
    ] = None
    training_gpu_percent: Annotated[
        int | None,
        Parameter(
            help="What a job may take of its GPU's memory; the models that are served have the rest. GANSERVE_TRAINING_GPU_PERCENT, or 50.",
            show_default=False,
            validator=Number(gte=1, lte=99),
        ),
    ] = None
    node: Annotated[
        str | None,
        Parameter(
            help="This server's name among those that share the PostgreSQL of GANSERVE_DATABASE_URL. GANSERVE_NODE, or the host's.",
            show_default=False,
        ),
    ] = None

    def over(self, found: "Settings") -> "Settings":
        return replace(
            found,
            jobs_at_once=self.jobs_at_once or found.jobs_at_once,
            training_memory_megabytes=self.training_memory_megabytes or found.training_memory_megabytes,
            training_gpu_percent=self.training_gpu_percent or found.training_gpu_percent,
            node=self.node or found.node,
        )


@Parameter(name="*")
@dataclass(frozen=True)
class Limits:
    """How much the server takes on, and what it tells of it; what is None is as the environment says."""

    queue_images: Annotated[
        int | None,
        Parameter(
            help="Images that may wait; more are refused (503). GANSERVE_QUEUE_IMAGES, or 4096.",
            show_default=False,
            validator=Number(gte=1, lte=10**6),
        ),
    ] = None
    queue_megabytes: Annotated[
        int | None,
        Parameter(
            help="What the bodies of all requests together may hold. GANSERVE_QUEUE_MEGABYTES, or 512.",
            show_default=False,
            validator=Number(gte=1, lte=10**6),
        ),
    ] = None
    deadline_seconds: Annotated[
        int | None,
        Parameter(
            help="What a request may take; then it is given up (504). GANSERVE_DEADLINE_SECONDS, or 60.",
            show_default=False,
            validator=Number(gte=1, lte=86400),
        ),
    ] = None
    model_memory_megabytes: Annotated[
        int | None,
        Parameter(
            help="What loaded models may take; what was asked for least recently is let go, and loaded again when it is asked for."
            " GANSERVE_MODEL_MEMORY_MEGABYTES, or no limit.",
            show_default=False,
            validator=Number(gte=1, lte=10**6),
        ),
    ] = None
    pins: Annotated[
        tuple[str, ...],
        Parameter(
            name="--pin", help="A model that is loaded first and never let go; repeat for more. GANSERVE_PIN (commas).", show_default=False
        ),
    ] = ()
    keep_versions: Annotated[
        int | None,
        Parameter(
            help="Of a model's newest versions, how many stay when a job publishes one more, beside those that an alias names."
            " GANSERVE_KEEP_VERSIONS, or all.",
            show_default=False,
            validator=Number(gte=1, lte=10**6),
        ),
    ] = None
    log_format: Annotated[
        Literal["plain", "json"] | None,
        Parameter(help="Lines to read, or a JSON object a line. GANSERVE_LOG_FORMAT, or plain.", show_default=False),
    ] = None
    access_log: Annotated[
        bool | None, Parameter(help="Tell of each request in the log. GANSERVE_ACCESS_LOG, or no.", show_default=False)
    ] = None

    def over(self, found: "Settings") -> "Settings":
        return replace(
            found,
            queue_images=self.queue_images or found.queue_images,
            queue_megabytes=self.queue_megabytes or found.queue_megabytes,
            deadline_seconds=self.deadline_seconds or found.deadline_seconds,
            model_memory_megabytes=self.model_memory_megabytes or found.model_memory_megabytes,
            pins=self.pins or found.pins,
            keep_versions=self.keep_versions or found.keep_versions,
            log_format=self.log_format or found.log_format,
            access_log=found.access_log if self.access_log is None else self.access_log,
        )


def serve(
    *,
    host: Annotated[str | None, Parameter(help="Address to listen on. GANSERVE_HOST, or 127.0.0.1.", show_default=False)] = None,
    port: Annotated[int | None, Parameter(help="Port; 0 takes a free one. GANSERVE_PORT, or 8000.", show_default=False)] = None,
    models: Repositories = (),
    state: State = None,
    device: Device = None,
    threads: Threads = None,
    backend: Annotated[
        Backend | None,
        Parameter(
            help="How every model is run that can be run so; another one, other last bits. GANSERVE_BACKEND, or as `ganserve tune` chose,"
            " or torchscript.",
            show_default=False,
        ),
    ] = None,
    allowed_host: Annotated[
        tuple[str, ...], Parameter(help="A name besides localhost that a request's Host may carry; repeat for more.")
    ] = (),
    limits: Limits = Limits(),
    jobs: Jobs = Jobs(),
) -> int:
    """Serve every model of the repositories over HTTP, and train on request."""
    from app.server import run
    from app.settings import SettingsError, check_exposure

    found = jobs.over(limits.over(settings(models, state, device, threads)))
    if port is not None and not 0 <= port <= 65535:
        raise SettingsError(f"--port is {port}; 0 to 65535 is allowed")
    found = replace(
        found,
        host=host or found.host,
        backend=backend or found.backend,
        port=port if port is not None else found.port,
        allowed_hosts=found.allowed_hosts + tuple(name.lower() for name in allowed_host),
    )
    check_exposure(found)
    return run(found, sys.stdout)
