"""The models that are served: which version answers, loaded, verified and swapped.

Which version answers: the one that a request names, by number or alias; else the canary, in its share of the requests; else the alias
`production`; else the newest. Where one of the last three is broken, the one before it answers.

What is new can be asked for at once, and a request that comes before it is loaded waits for it. What has changed is loaded beside what
serves until then, and takes its place by one assignment, model by model.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path

import torch

from app.batcher import Batcher
from app.choices import Backend, Choice, as_published
from app.engine import Engine, ModuleName, served_modules
from app.engines import Engines, num_bytes
from app.errors import Conflict, FieldError, Invalid, NotFound, UnknownModel, UnknownVersion, did_you_mean, show
from app.repository import Broken, Entry, Inventory, scan
from training.contract import FileSpec, Manifest
from training.files import versions
from training.files.directories import DamagedFileError, verify
from training.files.versions import CANARY, LATEST, PRODUCTION

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Served:
    """One model, by the version that answers where none is named."""

    manifest: Manifest
    versions: tuple[int, ...]  # ascending, without the broken ones
    aliases: Mapping[str, int]
    canary_share: float | None  # of the requests that name no version
    modules: tuple[ModuleName, ...]  # those that can be asked for
    buckets: Mapping[ModuleName, tuple[int, ...]]  # batch sizes that each module runs in; none while it is not loaded
    backends: Mapping[ModuleName, Backend]  # how each module is run; none while it is not loaded
    is_loaded: bool
    num_bytes: int  # what it counts for in memory


@dataclass(frozen=True)
class Listing:
    """Everything that is served, by name, and everything that is left out."""

    models: tuple[Served, ...]
    broken: tuple[Broken, ...]


class Store:
    """The model repositories of one server; the first is written to, the rest are only read. Used on one event loop."""

    def __init__(
        self,
        repositories: Sequence[Path],
        device: torch.device,
        batcher: Batcher,
        *,
        digests: Path,
        memory_bytes: int | None = None,
        pins: Sequence[str] = (),
        choose: Callable[[str, ModuleName], Choice] = lambda _model, module: as_published(module),
    ) -> None:
        """
        Args:
            digests: the folder of those that were published or confirmed here; no other version is loaded.
            memory_bytes: what loaded versions may take, by `num_bytes`; no limit when None.
            pins: models that are loaded first, and whose versions with a name are never let go.
            choose: how a model's module is to be run.
        """
        self.has_first = asyncio.Event()  # a model answers at once, or there is none to wait for
        self._repositories, self._digests = tuple(repositories), digests
        self._pins = frozenset(pins)
        self._engines = Engines(batcher, device, memory_bytes, choose)
        self._inventory = Inventory()  # what requests see; replaced whole
        self._found = self._inventory  # what lies on disk; ahead of that while a version loads
        self._defaults: Mapping[str, Entry] = {}
        self._credits: dict[str, Fraction] = {}  # of canaries: at 1 it is their turn
        self._told: frozenset[Broken] = frozenset()
        self._looking = asyncio.Lock()
        self._writing: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)  # by model: who writes loads it too
        self._is_ready = False

    async def refresh(self, name: str | None = None) -> None:
        """Notice what was published, pointed at, changed or removed, and load it; cheap when nothing was.

        Args:
            name: of this model alone; another's version is not waited for.

        Raises:
            OSError: a repository cannot be read; what was served still is.
        """
        while pending := [entry for entry in await self.look() if name in (None, entry.name)]:
            if await self._engines.load(pending[0], urgent=name is not None) is None:
                self._settle()
            if any(map(self._serves, self._defaults)):
                self.has_first.set()
        if name is None:
            self._is_ready = True
            self.has_first.set()

    async def aclose(self) -> None:
        """Wait for what is being loaded, which ends with the batcher."""
        await self._engines.aclose()

    async def look(self) -> list[Entry]:
        """The first half of `refresh`: notice, and give what is to be loaded, in order; raises as `refresh` does."""
        async with self._looking:
            self._found = await asyncio.to_thread(scan, self._repositories, self._found, self._digests)
            return self._adopt(self._found)

    async def engine(self, name: str, version: int | str | None = None) -> Engine:
        """The version that answers, loaded now if it was not yet.

        Raises:
            UnknownModel: it names the known ones.
            UnknownVersion: it names the versions and aliases, or says why this version is broken.
        """
        if version is None and (canary := self._canary_in_turn(name)) is not None and (engine := await self._engine(canary)) is not None:
            return engine
        while True:  # one that turns out broken leaves its place to the one before
            if (engine := await self._engine(self._resolve(name, version))) is not None:
                return engine

    async def point(self, name: str, alias: str, version: int | str, share: float = 0.0) -> None:
        """Load a version, then let an alias name it. Where `production` moves, `previous` names what answered before.

        Args:
            share: of the requests that name no version; for `canary` alone.

        Raises:
            Invalid: not a name for an alias, or a share that it cannot have.
            Conflict: the first repository cannot be written to.
            UnknownModel, UnknownVersion: as `engine`.
        """
        if not versions.may_be_pointed(alias):
            raise _wrong("alias", f"{show(alias)} cannot be one: {versions.ALIAS_RULE}")
        if share and alias != CANARY:
            raise _wrong("share", f"only {CANARY!r} can have a share of the requests; leave it out for {alias!r}")
        await self.refresh(name)  # it may have been published a moment ago
        entry = self._resolve(name, version)
        if await self._engine(entry) is None:
            raise self._refusal(entry)
        async with self._writing[name]:
            answering = self._defaults[name].number if name in self._defaults else None
            await self._write(
                name, lambda: versions.write_alias(self._repositories, name, alias, entry.number, share=share, answering=answering)
            )

    async def unpoint(self, name: str, alias: str) -> None:
        """Take an alias away. Where it is `production`, the newest version is loaded first, and `previous` names what answered before.

        Raises:
            UnknownModel, UnknownVersion: there is no such model or alias.
            Conflict: it stands in another repository than the first, or that cannot be written to.
        """
        await self.refresh(name)
        if alias not in self._model_aliases(name):
            raise UnknownVersion(f"model {name!r} has no alias {show(alias)}; {self._choices(name)}")
        async with self._writing[name]:
            await self._write(name, lambda: versions.remove_alias(self._repositories, name, alias))

    async def remove(self, name: str, version: str) -> None:
        """Take a version away, by its number, which is not used again. Requests that run end on it.

        Raises:
            UnknownModel, UnknownVersion: there is no such version.
            Conflict: an alias names it, it is pinned, or it lies where nothing can be written.
        """
        await self.refresh(name)
        self._model_aliases(name)
        if not version.isascii() or not version.isdecimal():
            raise UnknownVersion(f"{show(version)} is no number, and a version is removed by its number; {self._choices(name)}")
        async with self._writing[name]:
            remove = partial(versions.remove, self._repositories, name, int(version), self._pins)
            await self._write(name, remove, f"version {int(version)} of {name} stays")

    async def _write(self, name: str, write: Callable[[], None], otherwise: str = "") -> None:
        """Change aliases or versions on disk, then what requests see."""
        try:
            await asyncio.to_thread(write)
        except LookupError as error:
            raise UnknownVersion(str(error.args[0])) from error
        except versions.KeptError as error:
            raise Conflict(str(error)) from error
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "the aliases.json that is there cannot be read"
            otherwise = otherwise or f"the aliases of {name} stay as they are"
            raise Conflict(f"{otherwise}: {reason}; the first of --models is the one that is written to") from error
        await self.refresh(name)

    @property
    def names(self) -> tuple[str, ...]:
        """The models that answer, sorted."""
        return tuple(self._defaults)

    @property
    def loading(self) -> tuple[str, ...]:
        """Those of them that will be loaded without being asked for, and are not yet."""
        return tuple(name for name, entry in self._defaults.items() if self._is_to_load(entry))

    @property
    def is_ready(self) -> bool:
        """Whether everything was loaded that is to be; it stays so while newer versions load, since the older ones serve until then."""
        return self._is_ready

    def default_version(self, name: str) -> int:
        """The version that answers where none is named; raises as `engine` does."""
        return self._resolve(name, None).number

    def entry(self, name: str, version: int | str | None = None) -> Entry:
        """A version as it lies on disk; raises as `engine` does."""
        return self._resolve(name, version)

    def manifest(self, name: str, version: int | str | None = None) -> Manifest:
        """What a version is, without loading it; raises as `engine` does."""
        manifest = self._resolve(name, version).manifest
        assert manifest is not None
        return manifest

    def manifests(self, name: str) -> tuple[Manifest, ...]:
        """Every version that is not known to be broken, ascending; raises as `engine` does."""
        self._resolve(name, None)
        return tuple(entry.manifest for entry in self._good(name).values() if entry.manifest is not None)

    async def file(self, name: str, version: int | str | None, file: str) -> tuple[Path, FileSpec]:
        """A file that a version's manifest names, verified; raises as `engine` does.

        Raises:
            NotFound: the manifest names no such file, or it is no longer what the manifest says.
        """
        entry = self._resolve(name, version)
        files = self.manifest(name, entry.number).all_files
        if file not in files:
            raise NotFound(f"{name} version {entry.number} has no file {show(file)}; there are: {', '.join(files)}")
        try:
            return await asyncio.to_thread(verify, entry.folder, files[file]), files[file]
        except (DamagedFileError, OSError) as error:
            raise NotFound(f"{file} of {name} version {entry.number} is damaged or gone; other versions may have theirs") from error

    def served(self, name: str) -> Served:
        """One model of the listing; raises as `engine` does."""
        entry = self._resolve(name, None)
        assert entry.manifest is not None
        engine = self._engines.look_at(entry)
        return Served(
            manifest=entry.manifest,
            versions=tuple(self._good(name)),
            aliases=self._inventory.aliases[name],
            canary_share=self._inventory.shares[name] or None,
            modules=tuple(served_modules(entry.manifest)),
            buckets={} if engine is None else engine.buckets,
            backends={} if engine is None else engine.backends,
            is_loaded=engine is not None,
            num_bytes=num_bytes(entry.manifest),
        )

    def listing(self) -> Listing:
        """What is served and what is broken."""
        return Listing(tuple(self.served(name) for name in self._defaults), self._broken())

    # --- which version answers ------------------------------------------------------------------------------------------------

    def _resolve(self, name: str, version: int | str | None) -> Entry:
        aliases = self._model_aliases(name)
        if version is None:
            if name in self._defaults:
                return self._defaults[name]
            raise UnknownVersion(f"model {name!r} has no version that can be served; {self._reasons(name)}")
        newest = max(self._good(name), default=None) if version == LATEST else None
        number = int(version) if str(version).isascii() and str(version).isdecimal() else aliases.get(str(version), newest)
        entry = None if number is None else self._inventory.entries[name].get(number)
        if entry is None:
            raise UnknownVersion(f"model {name!r} has no version {show(version)}; {self._choices(name)}")
        if self._reason(entry):
            raise self._refusal(entry)
        return entry

    def _model_aliases(self, name: str) -> Mapping[str, int]:
        if name not in self._inventory.entries:
            known = list(self.names)
            raise UnknownModel(f"there is no model {show(name)}; there are: {', '.join(known) or 'none yet'}{did_you_mean(name, known)}")
        return self._inventory.aliases[name]

    def _canary_in_turn(self, name: str) -> Entry | None:
        """The canary, if this request without a version is one of its share: of 0.05, each twentieth."""
        share = self._inventory.shares.get(name)
        if not share:
            return None
        credit = self._credits.get(name, Fraction()) + Fraction(str(share))  # as it is written, so that nothing is rounded
        self._credits[name] = credit % 1
        canary = self._inventory.entries[name].get(self._inventory.aliases[name][CANARY])
        return canary if credit >= 1 and canary is not None and not self._reason(canary) else None

    async def _engine(self, entry: Entry) -> Engine | None:
        """The entry's engine, loaded now if it was not yet; None where it turned out broken, which is told then."""
        engine = self._engines.use(entry) or await self._engines.load(entry, urgent=True)
        if engine is None:
            self._settle()
        return engine

    def _reason(self, entry: Entry) -> str:
        """Why a version is broken; empty as long as it is not known to be."""
        return entry.reason or self._engines.failed.get(entry, "")

    def _good(self, name: str) -> dict[int, Entry]:
        return {number: entry for number, entry in self._inventory.entries.get(name, {}).items() if not self._reason(entry)}

    def _broken(self) -> tuple[Broken, ...]:
        """Everything that is left out, by name and version."""
        entries = (entry for found in self._inventory.entries.values() for entry in found.values())
        broken = [Broken(entry.name, entry.number, reason) for entry in entries if (reason := self._reason(entry))]
        return tuple(sorted([*broken, *self._inventory.obstacles], key=lambda item: (item.name, item.version or 0)))

    def _refusal(self, entry: Entry) -> UnknownVersion:
        reason = self._reason(entry)
        return UnknownVersion(f"version {entry.number} of model {entry.name!r} is broken: {reason}; {self._choices(entry.name)}")

    def _choices(self, name: str) -> str:
        aliases = (f"{alias} ({number})" for alias, number in self._inventory.aliases[name].items())
        return f"versions: {', '.join(map(str, self._good(name))) or 'none'}; aliases: {', '.join(aliases) or 'none'}"

    def _reasons(self, name: str) -> str:
        entries = self._inventory.entries[name].values()
        reasons = (f"version {entry.number} is broken: {reason}" for entry in entries if (reason := self._reason(entry)))
        return "; ".join(reasons) or self._choices(name)

    # --- what is to be loaded, and what serves meanwhile ----------------------------------------------------------------------

    def _adopt(self, found: Inventory) -> list[Entry]:
        """Let requests see what was found, but for models that serve and whose change is yet to be loaded.

        Returns:
            All that is yet to be loaded, pins first.
        """
        before = self._inventory
        missing = {name: [entry for entry in self._wanted(found, name) if self._is_to_load(entry)] for name in found.entries}
        waiting = [name for name in found.entries if missing[name] and self._serves(name)]
        self._inventory = found.taking(waiting, before) if waiting else found
        if self._inventory is not before:
            unchanged = [name for name in self._credits if self._inventory.shares.get(name) == before.shares.get(name)]
            self._credits = {name: self._credits[name] for name in unchanged}
            self._settle()
        return sorted((entry for entries in missing.values() for entry in entries), key=lambda entry: entry.name not in self._pins)

    def _wanted(self, inventory: Inventory, name: str) -> Iterator[Entry]:
        """What answers where no version is named, then what answers by an alias."""
        if (default := self._default(inventory, name)) is not None:
            yield default
        for number in sorted(set(inventory.aliases[name].values()) & set(inventory.entries[name])):
            entry = inventory.entries[name][number]
            if not self._reason(entry) and entry is not default:
                yield entry

    def _default(self, inventory: Inventory, name: str) -> Entry | None:
        entries = inventory.entries[name]
        newest = inventory.aliases[name].get(PRODUCTION, max(entries))
        answering = (entries[number] for number in sorted(entries, reverse=True) if number <= newest)
        return next((entry for entry in answering if not self._reason(entry)), None)

    def _is_to_load(self, entry: Entry) -> bool:
        """Whether it is to be loaded before it is asked for: there is room for it, or it takes the place of one that is loaded."""
        if self._engines.look_at(entry) is not None or self._reason(entry):
            return False
        if entry.name in self._pins or self._engines.has_room(entry):
            return True
        return self._serves(entry.name) and entry is self._default(self._found, entry.name)

    def _serves(self, name: str) -> bool:
        """Whether requests that name no version are answered at once."""
        return name in self._defaults and self._engines.look_at(self._defaults[name]) is not None

    def _settle(self) -> None:
        """Draw the consequences, after a change of what is there or of what is known to be broken."""
        seen = (self._inventory, self._found)
        defaults = {name: self._default(self._inventory, name) for name in self._inventory.entries}
        self._defaults = {name: entry for name, entry in defaults.items() if entry is not None}
        named = {entry for inventory in seen for name in inventory.entries for entry in self._wanted(inventory, name)}
        pinned = {entry for entry in named if entry.name in self._pins}
        self._engines.keep(lambda entry: any(inventory.holds(entry) for inventory in seen), named, pinned)
        broken = frozenset(self._broken())
        for item in sorted(broken - self._told, key=lambda item: (item.name, item.version or 0)):
            _log.warning("%s version %s is broken and left out: %s", item.name, item.version or "(any)", item.reason)
        self._told = broken


def _wrong(field: str, message: str) -> Invalid:
    return Invalid(f"{field}: {message}", errors=(FieldError(pointer=f"/{field}", message=message),))
