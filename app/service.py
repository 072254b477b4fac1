"""What one server holds while it runs: the models, the thread that runs them, the pool that encodes, and the jobs."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Annotated, TypeVar

import torch
from fastapi import Depends, Request

from app.batcher import Batcher
from app.jobs import JobService, WorkerSettings
from app.settings import Settings, SettingsError
from app.store import Store
from training.files.locks import LOCK, LockedError, hold, is_held
from training.files.machine import num_cores

REFRESH_SECONDS = 1.0  # a version published by another process is noticed within two
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
    pool: ThreadPoolExecutor
    decoders: ThreadPoolExecutor
    watcher: "asyncio.Task[None]"

    async def in_pool(self, work: Callable[[], Result]) -> Result:
        """Run what would hold up the event loop: encoding, reading files."""
        return await asyncio.get_running_loop().run_in_executor(self.pool, work)

    async def in_decoders(self, work: Callable[[], Result]) -> Result:
        """Decode a picture of a stranger's: large ones take long, and take no thread from the answers of others."""
        return await asyncio.get_running_loop().run_in_executor(self.decoders, work)

    def check_alive(self) -> None:
        """Raise what ended the work behind the routes, if anything has."""
        self.jobs.check_alive()
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


def check(settings: Settings) -> None:
    """What would keep the service from starting, before anything is started.

    Raises:
        SettingsError: the device is not here.
        LockedError: another server works on the same state folder.
    """
    pick_device(settings.device)
    for repository in settings.models:
        if repository.exists() and not repository.is_dir():
            raise SettingsError(f"--models {repository} is no folder")
    if settings.run_jobs:
        try:
            settings.jobs.mkdir(parents=True, exist_ok=True)
            (settings.jobs / LOCK).touch()
        except OSError as error:
            raise SettingsError(f"--state {settings.state} cannot be written into: {error.strerror}; choose another") from error
    if settings.run_jobs and is_held(settings.jobs):
        raise LockedError(f"another server works on {settings.state}: end it, or choose another --state")


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Service]:
    """A service with its models loaded, from its start to its end.

    Raises:
        SettingsError: the device is not here.
        LockedError: another server works on the same state folder.
    """
    device = pick_device(settings.device)
    async with AsyncExitStack() as stack:
        if settings.run_jobs:
            settings.jobs.mkdir(parents=True, exist_ok=True)
            stack.enter_context(hold(settings.jobs))
        pool = stack.enter_context(ThreadPoolExecutor(max(2, num_cores()), thread_name_prefix="encode"))
        decoders = stack.enter_context(ThreadPoolExecutor(max(1, num_cores() // 2), thread_name_prefix="decode"))
        batcher = Batcher(num_threads=settings.engine_threads)
        stack.push_async_callback(batcher.aclose)
        store = Store(settings.models, device, batcher)
        jobs = JobService(
            settings.jobs, WorkerSettings(settings.datasets, settings.weights, settings.models, settings.device), store.refresh
        )
        await store.refresh()
        if settings.run_jobs:
            await jobs.start()
            stack.push_async_callback(jobs.close)
        watcher = asyncio.create_task(_watch(store))
        stack.push_async_callback(_end, watcher)
        yield Service(settings, device, store, batcher, jobs, pool, decoders, watcher)


async def _watch(store: Store) -> None:
    while True:
        await asyncio.sleep(REFRESH_SECONDS)
        try:
            await store.refresh()
        except OSError as error:
            _log.warning("the model repositories cannot be read, and are looked at again: %s", error)


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


ServiceOf = Annotated[Service, Depends(_service)]
