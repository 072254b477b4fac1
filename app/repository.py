"""What lies in the model repositories, as documents: no model file is opened here, and no torch is needed."""

import os
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from training.contract import Manifest, is_name
from training.files import digests, versions

Stamp = tuple[tuple[str, int, int, int], ...]  # name, inode, size and time of each file: what changes when a file does


@dataclass(frozen=True)
class Broken:
    """What is left out, and why. `version` is None where it is not about one version."""

    name: str
    version: int | None
    reason: str


@dataclass(frozen=True, eq=False)
class Entry:
    """A version directory as it lies on disk now; a changed one is another entry. Without a manifest there is a reason."""

    name: str
    number: int
    folder: Path
    stamp: Stamp
    manifest: Manifest | None
    reason: str = ""
    digest: str = ""  # of its manifest's bytes; empty where they cannot be read
    is_trusted: bool = False  # by that digest


@dataclass(frozen=True)
class Inventory:
    """Every version by name and number, ascending; the aliases and the canary's share by name; and what stands in the way of others."""

    entries: Mapping[str, Mapping[int, Entry]] = field(default_factory=dict)
    aliases: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    shares: Mapping[str, float] = field(default_factory=dict)  # of the requests without a version; 0 where there is no canary
    obstacles: tuple[Broken, ...] = ()

    def holds(self, entry: Entry) -> bool:
        return self.entries.get(entry.name, {}).get(entry.number) is entry

    def taking(self, names: Sequence[str], other: "Inventory") -> "Inventory":
        """The same, but for models that are as another inventory has them."""
        return Inventory(
            {**self.entries, **{name: other.entries[name] for name in names}},
            {**self.aliases, **{name: other.aliases[name] for name in names}},
            {**self.shares, **{name: other.shares[name] for name in names}},
            self.obstacles,
        )


def scan(repositories: Sequence[Path], before: Inventory, trusted: Path) -> Inventory:
    """Look again; where nothing has changed the answer is `before` itself, and what has not changed keeps its entry.

    Args:
        trusted: the folder of the digests that were published or confirmed here.

    Raises:
        OSError: a repository cannot be read.
    """
    obstacles: list[Broken] = []
    entries: dict[str, dict[int, Entry]] = {}
    known = digests.known(trusted)
    for name, folders in _folders(repositories, obstacles).items():
        was = before.entries.get(name, {})
        found = [_entry(name, number, folder, was.get(number), known) for number, folder in sorted(folders.items())]
        if present := {entry.number: entry for entry in found if entry is not None}:
            entries[name] = present
    aliases: dict[str, Mapping[str, int]] = {}
    shares: dict[str, float] = {}
    for name in entries:
        aliases[name], shares[name] = _aliases(repositories, name, before, obstacles)
    inventory = Inventory(entries, aliases, shares, tuple(obstacles))
    return before if inventory == before else inventory


def _folders(repositories: Sequence[Path], obstacles: list[Broken]) -> dict[str, dict[int, Path]]:
    """Version directories by name and number; of two with one number, the first repository's."""
    folders: dict[str, dict[int, Path]] = {}
    for repository in repositories:
        for name in sorted(path.name for path in repository.iterdir() if is_name(path.name)) if repository.is_dir() else []:
            try:
                found = versions.versions([repository], name)
            except FileNotFoundError:
                continue  # removed at this moment
            except OSError as error:
                obstacles.append(Broken(name, None, f"the directory cannot be read: {error.strerror}"))
                continue
            for number, folder in found.items():
                if folders.setdefault(name, {}).setdefault(number, folder) != folder:
                    obstacles.append(Broken(name, number, "two repositories hold this version; the second one's is left out"))
    return dict(sorted(folders.items()))


def _entry(name: str, number: int, folder: Path, before: Entry | None, known: Container[str]) -> Entry | None:
    """The version directory, or None where it was removed at this moment; `before` itself where nothing has changed."""
    try:
        stamp = _stamp(folder)
    except FileNotFoundError:
        return None
    if before is not None and (before.folder, before.stamp, before.is_trusted) == (folder, stamp, before.digest in known):
        return before
    manifest, reason, digest = _manifest(folder)
    if manifest is not None and (manifest.name, manifest.version) != (name, number):
        reason = f"manifest.json is of {manifest.name!r} version {manifest.version}; a version cannot be copied under another name"
    elif manifest is not None and digest not in known:
        reason = digests.unknown(digest, f"{name}/{number}")
    return Entry(name, number, folder, stamp, None if reason else manifest, reason, digest, digest in known)


def _manifest(folder: Path) -> tuple[Manifest | None, str, str]:
    """What it says, why that cannot be read, and the digest of its bytes."""
    try:
        content = (folder / versions.MANIFEST).read_bytes()
    except FileNotFoundError:
        return None, "manifest.json is missing", ""
    except OSError as error:
        return None, f"manifest.json cannot be read: {error.strerror}", ""
    digest = digests.digest_of(content)
    try:
        return Manifest.model_validate_json(content), "", digest
    except ValidationError as error:
        first, *more = error.errors(include_url=False, include_input=False)
        place = ".".join(str(part) for part in first["loc"])
        return None, f"manifest.json: {place + ': ' if place else ''}{first['msg']}{f' (and {len(more)} more)' if more else ''}", digest


def _stamp(folder: Path) -> Stamp:
    if folder.exists() and not os.access(folder, os.R_OK | os.X_OK):
        return ()  # reading the manifest will say why
    with os.scandir(folder) as files:
        stats = [(file.name, file.stat(follow_symlinks=False)) for file in files]
    return tuple(sorted((name, stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in stats))


def _aliases(repositories: Sequence[Path], name: str, before: Inventory, obstacles: list[Broken]) -> tuple[Mapping[str, int], float]:
    """The aliases of a name, and the share of its canary."""
    try:
        pointers = versions.read_pointers(repositories, name)
    except FileNotFoundError:
        return {}, 0.0  # removed at this moment
    except (OSError, ValueError):
        obstacles.append(Broken(name, None, "aliases.json is no object of alias names to version numbers; the aliases stay as they were"))
        return before.aliases.get(name, {}), before.shares.get(name, 0.0)
    share = pointers[versions.CANARY].share if versions.CANARY in pointers else 0.0
    return {alias: pointer.version for alias, pointer in pointers.items()}, share
