"""The models that are served: which version answers, loaded, verified and swapped.

Which version answers: the one that a request names, by number or alias; else the alias `production`; else the newest. Where that one is
broken, the one before it answers a request that names none.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from app.batcher import Batcher
from app.engine import Engine, ModuleName
from app.errors import NotFound, UnknownModel, UnknownVersion, did_you_mean, show
from app.proving import BrokenVersionError
from app.repository import Broken, Entry, Inventory, scan
from training.contract import FileSpec, Manifest
from training.files.directories import DamagedFileError, verify

PRODUCTION = "production"
MAX_EXTRA_ENGINES = 4  # versions that were asked for by number alone

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Served:
    """One model, by the version that answers where none is named."""

    manifest: Manifest
    versions: tuple[int, ...]  # ascending, without the broken ones
    aliases: Mapping[str, int]
    buckets: Mapping[ModuleName, tuple[int, ...]]  # batch sizes that each module runs in


@dataclass(frozen=True)
class Listing:
    """Everything that is served, by name, and everything that is left out."""

    models: tuple[Served, ...]
    broken: tuple[Broken, ...]


@dataclass(frozen=True)
class _State:
    """What requests see; replaced whole."""

    inventory: Inventory = field(default_factory=Inventory)
    engines: Mapping[Entry, Engine] = field(default_factory=dict)  # what can be asked for without a number
    defaults: Mapping[str, Entry] = field(default_factory=dict)
    failed: Mapping[Entry, str] = field(default_factory=dict)  # reasons; a changed version is another entry, and tried again

    def reason(self, entry: Entry) -> str:
        """Why a version is broken; empty as long as it is not known to be."""
        return entry.reason or self.failed.get(entry, "")

    @property
    def broken(self) -> tuple[Broken, ...]:
        """Everything that is left out, by name and version."""
        entries = (entry for found in self.inventory.entries.values() for entry in found.values())
        broken = [Broken(entry.name, entry.number, reason) for entry in entries if (reason := self.reason(entry))]
        return tuple(sorted([*broken, *self.inventory.obstacles], key=lambda item: (item.name, item.version or 0)))

    def good(self, name: str) -> dict[int, Entry]:
        return {number: entry for number, entry in self.inventory.entries.get(name, {}).items() if not self.reason(entry)}


def _files(manifest: Manifest) -> dict[str, FileSpec]:
    """Every file that the manifest names, by its name."""
    modules = [manifest.generator, *([manifest.discriminator] if manifest.discriminator else []), *manifest.parts.values()]
    return {file.file: file for file in [*(file for module in modules for file in module.files.values()), manifest.samples]}


class Store:
    """The model repositories of one server; the first is written to by others, the rest are only read. Used on one event loop."""

    def __init__(self, repositories: Sequence[Path], device: torch.device, batcher: Batcher) -> None:
        self._repositories = tuple(repositories)
        self._device = device
        self._batcher = batcher
        self._state = _State()
        self._extra: OrderedDict[Entry, Engine] = OrderedDict()  # least recently used first
        self._loading = asyncio.Lock()

    async def refresh(self) -> None:
        """Notice what was published, pointed at, changed or removed; cheap when nothing was. Requests see the new state at once and whole.

        Raises:
            OSError: a repository cannot be read; what was served still is.
        """
        async with self._loading:
            inventory = await asyncio.to_thread(scan, self._repositories, self._state.inventory)
            if inventory is not self._state.inventory:
                self._swap(await self._load_all(inventory))

    async def engine(self, name: str, version: int | str | None = None) -> Engine:
        """The version that answers, loaded now if it was not yet.

        Raises:
            UnknownModel: it names the known ones.
            UnknownVersion: it names the versions and aliases, or says why this version is broken.
        """
        if (engine := self._loaded(self._resolve(name, version))) is not None:
            return engine
        async with self._loading:
            entry = self._resolve(name, version)  # again: much may have happened since
            return self._loaded(entry) or await self._load_extra(entry)

    @property
    def names(self) -> tuple[str, ...]:
        """The models that answer, sorted."""
        return tuple(self._state.defaults)

    def default_version(self, name: str) -> int:
        """The version that answers where none is named; raises as `engine` does."""
        return self._resolve(name, None).number

    def manifest(self, name: str, version: int | str | None = None) -> Manifest:
        """What a version is, without loading it; raises as `engine` does."""
        manifest = self._resolve(name, version).manifest
        assert manifest is not None
        return manifest

    def manifests(self, name: str) -> tuple[Manifest, ...]:
        """Every version that is not known to be broken, ascending; raises as `engine` does."""
        self._resolve(name, None)
        return tuple(entry.manifest for entry in self._state.good(name).values() if entry.manifest is not None)

    async def file(self, name: str, version: int | str | None, file: str) -> tuple[Path, FileSpec]:
        """A file that a version's manifest names, verified; raises as `engine` does.

        Raises:
            NotFound: the manifest names no such file, or it is no longer what the manifest says.
        """
        entry = self._resolve(name, version)
        files = _files(self.manifest(name, entry.number))
        if file not in files:
            raise NotFound(f"{name} version {entry.number} has no file {show(file)}; there are: {', '.join(files)}")
        try:
            return await asyncio.to_thread(verify, entry.folder, files[file]), files[file]
        except (DamagedFileError, OSError) as error:
            raise NotFound(f"{file} of {name} version {entry.number} is damaged or gone; other versions may have theirs") from error

    def served(self, name: str) -> Served:
        """One model of the listing; raises as `engine` does."""
        return self._served(self._state, name, self._resolve(name, None))

    def listing(self) -> Listing:
        """What is served and what is broken."""
        state = self._state
        models = (self._served(state, name, entry) for name, entry in state.defaults.items())
        return Listing(tuple(models), state.broken)

    @staticmethod
    def _served(state: _State, name: str, entry: Entry) -> Served:
        assert entry.manifest is not None
        return Served(entry.manifest, tuple(state.good(name)), state.inventory.aliases[name], state.engines[entry].buckets)

    # --- which version answers ------------------------------------------------------------------------------------------------

    def _resolve(self, name: str, version: int | str | None) -> Entry:
        state = self._state
        if name not in state.inventory.entries:
            known = list(self.names)
            raise UnknownModel(f"there is no model {show(name)}; there are: {', '.join(known) or 'none yet'}{did_you_mean(name, known)}")
        if version is None:
            if name in state.defaults:
                return state.defaults[name]
            raise UnknownVersion(f"model {name!r} has no version that can be served; {self._broken(name)}")
        number = int(version) if str(version).isascii() and str(version).isdecimal() else state.inventory.aliases[name].get(str(version))
        entry = None if number is None else state.inventory.entries[name].get(number)
        if entry is None:
            raise UnknownVersion(f"model {name!r} has no version {show(version)}; {self._choices(name)}")
        if state.reason(entry):
            raise self._refusal(entry)
        return entry

    def _refusal(self, entry: Entry) -> UnknownVersion:
        reason = self._state.reason(entry)
        return UnknownVersion(f"version {entry.number} of model {entry.name!r} is broken: {reason}; {self._choices(entry.name)}")

    def _choices(self, name: str) -> str:
        aliases = (f"{alias} ({number})" for alias, number in self._state.inventory.aliases[name].items())
        return f"versions: {', '.join(map(str, self._state.good(name))) or 'none'}; aliases: {', '.join(aliases) or 'none'}"

    def _broken(self, name: str) -> str:
        entries = self._state.inventory.entries[name].values()
        reasons = (f"version {entry.number} is broken: {reason}" for entry in entries if (reason := self._state.reason(entry)))
        return "; ".join(reasons) or self._choices(name)

    # --- loading --------------------------------------------------------------------------------------------------------------

    def _loaded(self, entry: Entry) -> Engine | None:
        if entry in self._extra:
            self._extra.move_to_end(entry)
            return self._extra[entry]
        return self._state.engines.get(entry)

    async def _load_all(self, inventory: Inventory) -> _State:
        engines: dict[Entry, Engine] = {}
        defaults: dict[str, Entry] = {}
        failed = {entry: reason for entry, reason in self._state.failed.items() if inventory.holds(entry)}
        for name, entries in inventory.entries.items():
            aliases = inventory.aliases[name]
            newest = aliases.get(PRODUCTION, max(entries))
            for number in sorted((number for number in entries if number <= newest), reverse=True):
                if await self._load(entries[number], engines, failed):
                    defaults[name] = entries[number]
                    break
            for number in set(aliases.values()) & set(entries):
                await self._load(entries[number], engines, failed)
        return _State(inventory, engines, defaults, failed)

    async def _load(self, entry: Entry, engines: dict[Entry, Engine], failed: dict[Entry, str]) -> bool:
        """Put the entry's engine among the engines, or the reason why there is none among the failed; each is tried once."""
        if entry in engines or entry in failed or entry.manifest is None:
            return entry in engines
        engine = self._loaded(entry)
        if engine is None:
            try:
                engine = await self._batcher.run_steps(Engine.loading(entry.folder, entry.manifest, self._device))
            except BrokenVersionError as error:
                failed[entry] = str(error)
                return False
            _log.info("%s version %d is loaded on %s", entry.name, entry.number, self._device)
        engines[entry] = engine
        return True

    async def _load_extra(self, entry: Entry) -> Engine:
        engines: dict[Entry, Engine] = {}
        failed = dict(self._state.failed)
        if not await self._load(entry, engines, failed):
            self._replace(replace(self._state, failed=failed))
            raise self._refusal(entry)
        self._extra[entry] = engines[entry]
        self._trim()
        return engines[entry]

    def _swap(self, state: _State) -> None:
        """Requests that run keep the engine they have; what was served until now is kept for a while, for a way back."""
        engines = [*self._extra.items(), *self._state.engines.items()]
        self._extra = OrderedDict(
            (entry, engine) for entry, engine in engines if state.inventory.holds(entry) and entry not in state.engines
        )
        self._trim()
        self._replace(state)

    def _replace(self, state: _State) -> None:
        for broken in state.broken:
            if broken not in self._state.broken:
                _log.warning("%s version %s is broken and left out: %s", broken.name, broken.version or "(any)", broken.reason)
        self._state = state

    def _trim(self) -> None:
        while len(self._extra) > MAX_EXTRA_ENGINES:
            self._extra.popitem(last=False)
