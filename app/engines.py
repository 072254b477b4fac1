"""The versions that are loaded: within a budget of memory, and one after another, those first that a request waits for.

What is let go ends when its last request does: whoever works with an engine holds it.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Collection, Generator
from dataclasses import dataclass
from functools import partial

import torch

from app.batcher import Batcher
from app.choices import Choice, as_published
from app.engine import Engine, ModuleName, served_modules
from app.proving import BrokenVersionError
from app.repository import Entry
from training.contract import Manifest

MAX_UNNAMED = 4  # loaded versions that answer by their number alone; without a budget, these are what could grow for ever

_log = logging.getLogger(__name__)


def num_bytes(manifest: Manifest) -> int:
    """What a version counts for in memory: its modules' files, which are their parameters and buffers and little else, and whose size is
    known before they are loaded."""
    return sum(module.files["torchscript"].size_bytes for module in served_modules(manifest).values() if "torchscript" in module.files)


@dataclass(eq=False)
class _Load:
    """A version on its way; the answer is None where it turned out broken."""

    steps: Generator[None, None, Engine]
    answer: "asyncio.Future[Engine | None]"
    urgent: bool = False

    def step(self) -> Engine | None:
        try:
            next(self.steps)
        except StopIteration as end:
            engine: Engine = end.value
            return engine
        return None


class Engines:
    """Loads versions, and keeps them. Used on one event loop."""

    def __init__(
        self,
        batcher: Batcher,
        device: torch.device,
        budget_bytes: int | None = None,
        choose: Callable[[str, ModuleName], Choice] = lambda _model, module: as_published(module),
    ) -> None:
        """
        Args:
            budget_bytes: how much may be loaded before what was used least recently goes; no limit when None. What was used last stays,
                however large.
            choose: how a model's module is to be run.
        """
        self.failed: dict[Entry, str] = {}  # reasons; a changed version is another entry, and tried again
        self._batcher, self._device, self._budget_bytes, self._choose = batcher, device, budget_bytes, choose
        self._loaded: OrderedDict[Entry, Engine] = OrderedDict()  # least recently used first
        self._num_bytes = 0  # of them
        self._loads: dict[Entry, _Load] = {}  # in the order in which they were asked for
        self._is_held: Callable[[Entry], bool] = lambda _entry: True
        self._named: Collection[Entry] = ()
        self._pinned: Collection[Entry] = ()
        self._outdated: set[Entry] = set()  # loaded, but not asked for since they lost their name
        self._worker: asyncio.Task[None] | None = None

    def use(self, entry: Entry) -> Engine | None:
        """Its engine, if it is loaded; that counts as use."""
        if entry in self._loaded:
            self._loaded.move_to_end(entry)
            self._outdated.discard(entry)
        return self._loaded.get(entry)

    def look_at(self, entry: Entry) -> Engine | None:
        """Its engine, if it is loaded; that counts for nothing."""
        return self._loaded.get(entry)

    def has_room(self, entry: Entry) -> bool:
        """Whether it can be loaded and none goes but outdated ones."""
        assert entry.manifest is not None
        if self._budget_bytes is None:
            return True
        outdated = sum(num_bytes(self._loaded[other].manifest) for other in self._outdated)
        return self._num_bytes - outdated + num_bytes(entry.manifest) <= self._budget_bytes

    async def load(self, entry: Entry, *, urgent: bool) -> Engine | None:
        """Its engine; None where it is broken, and `failed` says why. It is loaded once for all who ask, and also where they leave.

        Args:
            urgent: a request waits for it, so it goes before those that none waits for.

        Raises:
            Overloaded: the server stops.
        """
        if entry in self._loaded or entry in self.failed or entry.manifest is None:
            return self.use(entry)
        if entry not in self._loads:
            steps = Engine.loading(entry.folder, entry.manifest, self._device, partial(self._choose, entry.name))
            self._loads[entry] = _Load(steps, asyncio.get_running_loop().create_future())
        load = self._loads[entry]
        load.urgent |= urgent
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await asyncio.shield(load.answer)

    def keep(self, is_held: Callable[[Entry], bool], named: Collection[Entry], pinned: Collection[Entry]) -> None:
        """Let go what is too much.

        Args:
            is_held: whether a version can still be asked for.
            named: what answers where no version is named, or by an alias.
            pinned: what no budget takes away.
        """
        lost = {entry for entry in self._named if entry in self._loaded}
        self._outdated = (self._outdated | lost).difference(named)
        self._is_held, self._named, self._pinned = is_held, named, pinned
        self._trim()

    async def aclose(self) -> None:
        """Wait for what is on its way, which the batcher, closed before, refuses."""
        if self._worker is not None:
            await asyncio.wait([self._worker])

    def _let_go(self, entry: Entry) -> None:
        self._num_bytes -= num_bytes(self._loaded.pop(entry).manifest)
        self._outdated.discard(entry)

    def _trim(self) -> None:
        self.failed = {entry: reason for entry, reason in self.failed.items() if self._is_held(entry)}
        for entry in [entry for entry in self._loaded if not self._is_held(entry)]:
            self._let_go(entry)
        unnamed = [entry for entry in self._loaded if entry not in self._named]
        for entry in unnamed[:-MAX_UNNAMED]:
            self._let_go(entry)
        for entry in sorted(list(self._loaded)[:-1], key=lambda entry: entry not in self._outdated):
            if self._budget_bytes is None or self._num_bytes <= self._budget_bytes:
                return
            if entry not in self._pinned:
                self._let_go(entry)
                _log.info("%s version %d is let go, to keep within the memory for models", entry.name, entry.number)

    async def _work(self) -> None:
        while self._loads:
            entry, load = min(self._loads.items(), key=lambda item: not item[1].urgent)  # of equals, the first
            step = asyncio.ensure_future(self._batcher.run_on_thread(load.step))
            await asyncio.wait([step])
            error = step.exception()
            if error is not None or step.result() is not None:
                del self._loads[entry]
                self._settle(entry, load, step)

    def _settle(self, entry: Entry, load: _Load, step: "asyncio.Task[Engine | None]") -> None:
        error = step.exception()
        if isinstance(error, BrokenVersionError):
            self.failed[entry] = str(error)
            self._trim()
            load.answer.set_result(None)
        elif error is not None:
            load.answer.set_exception(error)
            load.answer.exception()  # whoever asked may have left, and then nobody looks at it
        else:
            engine = step.result()
            assert engine is not None
            _log.info("%s version %d is loaded on %s", entry.name, entry.number, self._device)
            self._loaded[entry] = engine
            self._num_bytes += num_bytes(engine.manifest)
            self._trim()
            load.answer.set_result(engine)
