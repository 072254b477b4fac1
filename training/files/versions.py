"""How a model repository lies on disk: `<name>/<version>/manifest.json`, and `<name>/aliases.json` for the movable names.

There may be several repositories: the first is written to, the others are only read.
"""

import errno
import fcntl
import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from training.contract import is_name
from training.files import numbers
from training.files.directories import commit, make_folder, write_atomically

MANIFEST = "manifest.json"
ALIASES = "aliases.json"
PRODUCTION = "production"  # answers where no version is named
PREVIOUS = "previous"  # what answered before `production` moved
LATEST = "latest"  # the newest version, whatever the aliases are
CANARY = "canary"  # may answer a share of the requests that name no version


class Pointer(NamedTuple):
    """What an alias names, and the share, from 0 to 1, of the requests without a version that go there."""

    version: int
    share: float = 0.0


def names(repositories: Sequence[Path]) -> list[str]:
    """Every name that has a version directory, sorted."""
    return sorted(
        {
            folder.name
            for repository in repositories
            if repository.is_dir()
            for folder in repository.iterdir()
            if is_name(folder.name) and versions([repository], folder.name)
        }
    )


def versions(repositories: Sequence[Path], name: str) -> dict[int, Path]:
    """The version directories of a name by number, ascending; where two repositories hold one number, the first repository's."""
    found: dict[int, Path] = {}
    for repository in reversed(repositories):
        folder = repository / name
        if not folder.is_dir() or folder.is_symlink():
            continue
        removed = numbers.removed(folder)
        for path in folder.iterdir():
            is_number = path.name.isascii() and path.name.isdecimal() and path.name == str(int(path.name))
            if is_number and int(path.name) not in removed and path.is_dir():
                found[int(path.name)] = path
    return dict(sorted(found.items()))


def read_aliases(repositories: Sequence[Path], name: str) -> dict[str, int]:
    """The version that each alias of a name points at; raises as `read_pointers` does."""
    return {alias: pointer.version for alias, pointer in read_pointers(repositories, name).items()}


def read_pointers(repositories: Sequence[Path], name: str) -> dict[str, Pointer]:
    """The aliases of a name; where two repositories hold one alias, the first repository's.

    Raises:
        ValueError: an aliases.json that is no object of names to numbers, or to objects of `version` and `share`.
    """
    pointers: dict[str, Pointer] = {}
    for repository in reversed(repositories):
        path = repository / name / ALIASES
        if path.is_file():
            try:
                content = json.loads(path.read_bytes())
            except RecursionError as error:
                raise ValueError(f"{path} is nested too deeply") from error
            if not isinstance(content, dict) or not all(is_alias(key) for key in content):
                raise ValueError(f"{path} is no object of alias names to version numbers")
            pointers |= {key: _pointer(value, path) for key, value in content.items()}
    return pointers


def _pointer(value: object, path: Path) -> Pointer:
    version, share = (value.get("version"), value.get("share", 0.0)) if isinstance(value, dict) else (value, 0.0)
    if type(version) is int and type(share) in (int, float) and 0 <= share <= 1:
        return Pointer(version, share)
    raise ValueError(f"{path} is no object of alias names to version numbers")


def is_alias(text: str) -> bool:
    """An alias is a name that cannot be taken for a number."""
    return is_name(text) and not text.isdecimal()


ALIAS_RULE = f"small letters, digits, '.', '_' and '-' are allowed, not digits alone, and not {LATEST!r}, which is the newest version"


def may_be_pointed(text: str) -> bool:
    """Whether it may be written down as an alias."""
    return is_alias(text) and text != LATEST


def write_alias(
    repositories: Sequence[Path],
    name: str,
    alias: str,
    version: int,
    *,
    share: float = 0.0,
    answering: int | None = None,
    against: Callable[[Mapping[str, int]], str] = lambda _aliases: "",
) -> None:
    """Point an alias at a version that exists, in the first repository. Where `production` moves, `previous` names what answered before.

    Args:
        share: of the requests that name no version; for `canary` alone.
        answering: the version that answers where none is named, for who knows it better than the files do.
        against: says, of the aliases as they are while nobody else changes them, why this one is to stay; nothing where it is not.

    Raises:
        LookupError: no such version.
        ValueError: not a name for an alias, a share that it cannot have, or the reason why it is to stay.
        OSError: the first repository cannot be written to.
    """
    if not may_be_pointed(alias):
        raise ValueError(f"{alias!r} cannot be an alias: {ALIAS_RULE}")
    if share and alias != CANARY:
        raise ValueError(f"{alias!r} cannot have a share of the requests; {CANARY!r} can")
    if not 0 <= share <= 1:
        raise ValueError(f"the share is {share}; 0 to 1 is allowed")
    _check_there(repositories, name, version)  # before a folder is made for it
    folder = repositories[0] / name
    folder.mkdir(parents=True, exist_ok=True)
    with _changing(folder):
        known = _check_there(repositories, name, version)  # alone: nobody removes it now
        pointers, aliases = read_pointers(repositories[:1], name), read_aliases(repositories, name)
        if reason := against(aliases):
            raise ValueError(reason)
        before = answering or aliases.get(PRODUCTION, max(known))
        if alias == PRODUCTION and before != version and before in known:
            pointers[PREVIOUS] = Pointer(before)
        _write_pointers(folder, pointers | {alias: Pointer(version, share)})


def _check_there(repositories: Sequence[Path], name: str, version: int) -> dict[int, Path]:
    """The versions, of which this is one; raises LookupError."""
    known = versions(repositories, name)
    if version not in known:
        raise LookupError(_no_version(repositories, name, str(version)))
    return known


def remove_alias(repositories: Sequence[Path], name: str, alias: str) -> None:
    """Take an alias away; where that is `production` and another version answers now, `previous` names what it named.

    Raises:
        LookupError: there is no such alias.
        OSError: another repository than the first sets it, or that one cannot be written to.
    """
    if alias not in (aliases := read_aliases(repositories, name)):
        raise LookupError(f"model {name!r} has no alias {alias!r}; aliases: {', '.join(aliases) or 'none'}")
    if any(alias in read_aliases([repository], name) for repository in repositories[1:]):
        raise OSError(errno.EROFS, f"{alias!r} is set in a repository that is only read: point it at another version instead")
    with _changing(repositories[0] / name):
        pointers = read_pointers(repositories[:1], name)
        pointer = pointers.pop(alias, None)
        known = versions(repositories, name)
        if pointer is not None and alias == PRODUCTION and pointer.version in known and pointer.version != max(known):
            pointers[PREVIOUS] = Pointer(pointer.version)
        _write_pointers(repositories[0] / name, pointers)


class KeptError(Exception):
    """A version that must stay; the message says why."""


def remove(repositories: Sequence[Path], name: str, number: int, pinned: Collection[str] = ()) -> None:
    """Take a version away: out of sight by one rename, and its number is not used again.

    Args:
        pinned: names of models whose version that answers stays.

    Raises:
        LookupError: no such version.
        KeptError: an alias names it, it is pinned, or another repository than the first holds it.
        OSError: the first repository cannot be written to.
    """
    known = versions(repositories, name) if is_name(name) else {}
    if number not in known:
        raise LookupError(_no_version(repositories, name, str(number)))
    if known[number].parent.parent != repositories[0]:
        raise KeptError(f"{name} version {number} lies in {known[number].parent.parent}, which is only read")
    with _changing(repositories[0] / name):
        if reason := _kept(repositories, name, pinned).get(number):
            raise KeptError(f"{name} version {number} stays: {reason}")
        numbers.remove(repositories[0] / name, number)


def prunable(repositories: Sequence[Path], name: str, keep: int, pinned: Collection[str] = ()) -> list[int]:
    """The versions of the first repository that go where the newest so many are kept, ascending; what has a reason to stay, stays."""
    kept = {*list(versions(repositories, name))[-keep:], *_kept(repositories, name, pinned)}
    return [number for number in versions(repositories[:1], name) if number not in kept]


def prune(repositories: Sequence[Path], name: str, keep: int, pinned: Collection[str] = ()) -> list[int]:
    """Take away what is prunable, and say what that was; raises OSError as `remove`."""
    gone = []
    for number in prunable(repositories, name, keep, pinned):
        with suppress(LookupError, KeptError):  # somebody was faster, or has named it meanwhile
            remove(repositories, name, number, pinned)
            gone.append(number)
    return gone


def _kept(repositories: Sequence[Path], name: str, pinned: Collection[str]) -> dict[int, str]:
    """Why versions stay."""
    aliases = read_aliases(repositories, name)
    reasons = {number: f"the alias {alias} names it; point that elsewhere first" for alias, number in aliases.items()}
    if name in pinned:
        answers = aliases.get(PRODUCTION, max(versions(repositories, name), default=0))
        reasons.setdefault(answers, f"it is what {name} answers with, which is pinned (--pin)")
    return reasons


def _write_pointers(folder: Path, pointers: Mapping[str, Pointer]) -> None:
    content = {alias: pointer._asdict() if pointer.share else pointer.version for alias, pointer in pointers.items()}
    write_atomically(folder / ALIASES, json.dumps(content, indent=2, sort_keys=True).encode() + b"\n")


@contextmanager
def _changing(folder: Path) -> Iterator[None]:
    """Alone among all who change this model's aliases, in this process and others; readers need no lock."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def find(reference: str, repositories: Sequence[Path]) -> Path:
    """The directory of `name` (its `production`, else its newest), `name/3`, `name/alias` or `name/latest`.

    Raises:
        LookupError: there is none; the message lists what there is.
    """
    name, _, wanted = reference.partition("/")
    known = versions(repositories, name) if is_name(name) else {}
    if not known:
        raise LookupError(f"there is no model {name!r}; there are: {', '.join(names(repositories)) or 'none yet'}")
    aliases = read_aliases(repositories, name)
    unnamed = max(known) if wanted in ("", LATEST) else -1
    number = int(wanted) if wanted.isdecimal() else aliases.get(wanted or PRODUCTION, unnamed)
    if number not in known:
        raise LookupError(_no_version(repositories, name, wanted))
    return known[number]


def _no_version(repositories: Sequence[Path], name: str, wanted: str) -> str:
    numbers = ", ".join(map(str, versions(repositories, name))) or "none"
    aliases = ", ".join(read_aliases(repositories, name)) or "none"
    return f"model {name!r} has no version {wanted!r}; versions: {numbers}; aliases: {aliases}"


def reserve(repositories: Sequence[Path], name: str, run: str) -> int:
    """The number that a run publishes under: the same each time, no other run's, and never used again.

    Raises:
        NotADirectoryError: a file stands where the model's folder should be.
    """
    return numbers.reserve(_folder(repositories, name), run, lambda: next_number(repositories, name))


class RemovedError(Exception):
    """The version was removed, and its number is not used again."""


def publish(staged: Path, repositories: Sequence[Path], name: str, number: int) -> Path:
    """Make a staged version visible in the first repository, under a number that was reserved for it.

    Raises:
        FileExistsError: there is a version of this number.
        RemovedError: there was one.
        NotADirectoryError: a file stands where the model's folder should be.
    """
    folder = _folder(repositories, name)
    if number in numbers.removed(folder):
        raise RemovedError(f"{name} version {number} was removed, and is not made again")
    target = folder / str(number)
    commit(staged, target)
    return target


def next_number(repositories: Sequence[Path], name: str) -> int:
    """One more than the highest number that any repository has, had or is yet to have."""
    folders = [repository / name for repository in repositories]
    taken = [number for folder in folders for number in numbers.reserved(folder) | numbers.removed(folder)]
    return max([*versions(repositories, name), *taken], default=0) + 1


def _folder(repositories: Sequence[Path], name: str) -> Path:
    """The model's folder in the first repository, made where it is missing."""
    try:
        return make_folder(repositories[0] / name)
    except FileExistsError as error:  # a file stands there, which no other number helps
        raise NotADirectoryError(errno.ENOTDIR, f"{repositories[0] / name} is no folder") from error
