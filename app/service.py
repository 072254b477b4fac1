"""What one server holds while it runs: the models, the thread that runs them, the pool that encodes, the jobs and the data sets."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import torch
from fastapi import Depends, Request

from app import backends, choices, visits
from app.batcher import Batcher
from app.errors import IndexUnavailable, NotServed
from app.index import Index
from app.jobs import JobService
from app.metrics import Metrics
from app.pools import Pool
from app.rooms import Room
from app.settings import Settings, SettingsError, with_choices
from app.store import Store
from app.streaming import MAX_WATCHERS
from app.visits import Phase
from app.workers import WorkerSettings
from training.files import versions
from training.files.locks import LOCK, LockedError, hold, is_held
from training.files.machine import memory_megabytes, num_cores

if TYPE_CHECKING:
    from app.datasets import DatasetService

SERVERS = ".servers"  # in the folder of jobs: a folder for each server that shares it
REFRESH_SECONDS = 1.0  # a version published by another process is noticed within two
MAX_AUGMENTATIONS = 4  # data sets that are made of images at a time
MAX_ADMINISTRATIVE = 64  # requests for lists, files, jobs and aliases that are worked on
Result = TypeVar("Result")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Service:
    """Everything that a route may reach."""

    settings: Settings
    device: torch.device
    store: Store
    batcher: Batcher
    jobs: JobService
    known_datasets: "DatasetService | None"
    pool: Pool
    decoders: Pool
    administration: Room
    watchers: Room
    augmentations: Room
    stopping: asyncio.Event
    metrics: Metrics
    watcher: "asyncio.Task[None]"

    @property
    def datasets(self) -> "DatasetService":
        """Raises NotServed where this process has no trainer."""
        self.expect_trainer()
        assert self.known_datasets is not None
        return self.known_datasets

    def expect_trainer(self) -> None:
        """Raises NotServed where this process has none."""
        if self.known_datasets is None:
            raise NotServed("this process serves only; it has no training.datasets")

    async def in_pool(self, work: Callable[[], Result], phase: Phase, num_images: int = 1) -> Result:
        """Run what would hold up the event loop: encoding, reading files."""
        with visits.current().spending(phase):
            return await self.pool.run(work, num_images)

    async def in_decoders(self, work: Callable[[], Result]) -> Result:
        """Decode a picture of a stranger's: large ones take long, and take no thread from the answers of others."""
        with visits.current().spending("decode"):
            return await self.decoders.run(work)

    def stop(self) -> None:
        """The server is about to end: who watches is told, and the workers are asked for a checkpoint, while open requests are answered."""
        self.stopping.set()
        self.jobs.stop()

    def check_alive(self) -> None:
        """Raise what ended the work behind the routes, if anything has."""
        self.jobs.check_alive()
        if self.known_datasets is not None:
            self.known_datasets.check_alive()
        if self.watcher.done():
            self.watcher.result()


def pick_device(text: str) -> torch.device:
    """`auto` is the first GPU, or else the CPU.

    Raises:
        SettingsError: no such device here.
    """
    if text == "auto":
        text = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(text)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise SettingsError(f"device {text!r} is not to be had here: {str(error).splitlines()[0]}; auto and cpu are") from error
    return device


def _check_backends(settings: Settings) -> torch.device:
    """The device, on which everything can be run as it is to be: another way would give other last bits in silence.

    Raises:
        SettingsError: it cannot, or the device is not here.
    """
    device = pick_device(settings.device)
    for backend in settings.choices.backends if settings.backend is None else {settings.backend}:
        if reason := backends.refusal(backend, device):
            whence = "--backend" if settings.backend else f"what `ganserve tune` chose, {settings.state / choices.FILE}"
            raise SettingsError(f"{whence}: {reason}; or choose another")
    return device


def check(settings: Settings) -> None:
    """What would keep the service from starting, before anything is started.

    Raises:
        SettingsError: the device is not here, or the models cannot be run as they are to be.
        LockedError: another server works on the same state folder.
    """
    _check_backends(with_choices(settings))
    for repository in settings.models:
        if repository.exists() and not repository.is_dir():
            raise SettingsError(f"--models {repository} is no folder")
    known = versions.names(settings.models)
    for name in settings.pins:
        if name not in known:
            raise SettingsError(f"--pin {name} is no model; there are: {', '.join(known) or 'none yet'}")
    if settings.run_jobs:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", settings.node):
            raise SettingsError(f"the node {settings.node!r} is no name: give letters, digits, '.', '_' and '-', 63 at most")
        own = _own_folder(settings)
        try:
            own.mkdir(parents=True, exist_ok=True)
            (own / LOCK).touch()
        except OSError as error:
            raise SettingsError(f"--state {settings.state} cannot be written into: {error.strerror}; choose another") from error
        if is_held(own):
            remedy = "give this one another GANSERVE_NODE" if settings.database_url else "choose another --state"
            raise LockedError(f"another server works on {settings.state}: end it, or {remedy}")
        if settings.database_url:
            _check_database(settings)


def _own_folder(settings: Settings) -> Path:
    """Whose lock a server holds: with SQLite it has the jobs to itself, else it shares them with servers of other names."""
    return settings.jobs / SERVERS / settings.node if settings.database_url else settings.jobs


def _check_database(settings: Settings) -> None:
    index = Index(settings.index_url, settings.node)
    try:
        index.open()
    except IndexUnavailable as error:
        raise SettingsError(f"GANSERVE_DATABASE_URL: {error}") from error
    finally:
        index.close()


def training_devices(settings: Settings, device: torch.device) -> tuple[str, ...]:
    """Where jobs run, one at a time each: every GPU where the service takes the first that it finds, else the service's own device."""
    found = [settings.device if settings.device != "auto" else str(device)]
    if settings.device in ("auto", "cuda") and device.type == "cuda":
        found = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    at_once = settings.jobs_at_once or len(found)
    return tuple(found[number % len(found)] for number in range(at_once))


def _worker_settings(settings: Settings, device: torch.device, num_at_once: int) -> WorkerSettings:
    return WorkerSettings(
        settings.datasets,
        settings.weights,
        settings.models,
        settings.digests,
        keep_versions=settings.keep_versions,
        memory_megabytes=settings.training_memory_megabytes or memory_megabytes() * 3 // 4 // num_at_once,
        device_memory_share=settings.training_gpu_percent / 100 if device.type == "cuda" else None,
    )


def _open_store(settings: Settings, device: torch.device, batcher: Batcher) -> Store:
    return Store(
        settings.models,
        device,
        batcher,
        digests=settings.digests,
        memory_bytes=settings.model_memory_bytes,
        pins=settings.pins,
        choose=settings.choice,
    )


def _open_jobs(settings: Settings, device: torch.device, store: Store) -> JobService:
    devices = training_devices(settings, device)
    worker = _worker_settings(settings, device, len(devices))
    return JobService(settings.jobs, Index(settings.index_url, settings.node), worker, store.refresh, devices)


def _holding_jobs(settings: Settings) -> AbstractContextManager[None]:
    """No other server of this name works on these jobs to the end of the block; raises LockedError."""
    own = _own_folder(settings)
    own.mkdir(parents=True, exist_ok=True)
    return hold(own)


@asynccontextmanager
async def running(settings: Settings, metrics: Metrics) -> AsyncIterator[Service]:
    """A service from its start to its end; its models can be asked for at once, and are loaded meanwhile.

    Raises:
        SettingsError: the device is not here.
        LockedError: another server works on the same state folder.
    """
    settings = with_choices(settings)
    device = _check_backends(settings)
    async with AsyncExitStack() as stack:
        if settings.run_jobs:
            stack.enter_context(_holding_jobs(settings))
            if device.type == "cuda":  # the rest is the worker's
                torch.cuda.set_per_process_memory_fraction(1 - settings.training_gpu_percent / 100, device)
        pool = stack.enter_context(Pool("encode", max(2, num_cores())))
        decoders = stack.enter_context(Pool("decode", max(1, num_cores() // 2)))
        administration = Room("administration", "administrative requests wait", MAX_ADMINISTRATIVE)
        metrics.watch("ganserve_administrative_requests", "Administrative requests that wait", lambda: administration.amount)
        watchers = Room("watchers", "clients watch jobs", MAX_WATCHERS)
        augmentations = Room("augmentations", "data sets are being made of a model's images", MAX_AUGMENTATIONS)
        metrics.watch("ganserve_watchers", "Clients that watch a job's events", lambda: watchers.amount)
        batcher = Batcher(settings.queue_images, settings.engine_threads, encoders=pool, metrics=metrics)
        store = _open_store(settings, device, batcher)
        stack.push_async_callback(store.aclose)
        stack.push_async_callback(batcher.aclose)
        jobs = _open_jobs(settings, device, store)
        stack.push_async_callback(jobs.close)
        datasets = _open_datasets(settings, jobs)
        if datasets is not None:
            stack.push_async_callback(datasets.close)
        await store.look()
        if settings.run_jobs:
            await jobs.start()
            if datasets is not None:
                await datasets.start()
        watcher = asyncio.create_task(_watch(store))
        stack.push_async_callback(_end, watcher)
        yield Service(
            settings,
            device,
            store,
            batcher,
            jobs,
            datasets,
            pool,
            decoders,
            administration,
            watchers,
            augmentations,
            asyncio.Event(),
            metrics,
            watcher,
        )


def _open_datasets(settings: Settings, jobs: JobService) -> "DatasetService | None":
    """None where this process has no trainer, whose sets they are."""
    try:
        from app.datasets import DatasetService  # noqa: PLC0415  it may not be there
    except ImportError:
        return None
    return DatasetService(settings.datasets, settings.imports, jobs, is_shared=bool(settings.database_url))


async def _watch(store: Store) -> None:
    while True:
        try:
            await store.refresh()
        except OSError as error:
            _log.warning("the model repositories cannot be read, and are looked at again: %s", error)
        await asyncio.sleep(REFRESH_SECONDS)


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def _service(request: Request) -> Service:  # async, or it would be called on a thread
    service: Service = request.app.state.service
    return service


ServiceOf = Annotated[Service, Depends(_service)]


async def _administrative(service: ServiceOf) -> AsyncIterator[None]:
    with service.administration.holding(1):
        yield


# what many at once of a route's requests would hold up; a file that is sent slowly takes no room while it is sent
ADMINISTRATIVE = Depends(_administrative, scope="function")
