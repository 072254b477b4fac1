"""How a model repository lies on disk: `<name>/<version>/manifest.json`, and `<name>/aliases.json` for the movable names.

There may be several repositories: the first is written to, the others are only read.
"""

import errno
import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from training.contract import is_name
from training.files.directories import commit, write_atomically

MANIFEST = "manifest.json"
ALIASES = "aliases.json"
PRODUCTION = "production"  # answers where no version is named
PREVIOUS = "previous"  # what answered before `production` moved
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
        for path in folder.iterdir():
            if path.name.isascii() and path.name.isdecimal() and path.name == str(int(path.name)) and path.is_dir():
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


def write_alias(
    repositories: Sequence[Path], name: str, alias: str, version: int, *, share: float = 0.0, answering: int | None = None
) -> None:
    """Point an alias at a version that exists, in the first repository. Where `production` moves, `previous` names what answered before.

    Args:
        share: of the requests that name no version; for `canary` alone.
        answering: the version that answers where none is named, for who knows it better than the files do.

    Raises:
        LookupError: no such version.
        ValueError: not a name for an alias, or a share that it cannot have.
        OSError: the first repository cannot be written to.
    """
    if not is_alias(alias):
        raise ValueError(f"{alias!r} cannot be an alias: small letters, digits, '.', '_' and '-' are allowed, and not digits alone")
    if share and alias != CANARY:
        raise ValueError(f"{alias!r} cannot have a share of the requests; {CANARY!r} can")
    if not 0 <= share <= 1:
        raise ValueError(f"the share is {share}; 0 to 1 is allowed")
    known = versions(repositories, name)
    if version not in known:
        raise LookupError(_no_version(repositories, name, str(version)))
    folder = repositories[0] / name
    folder.mkdir(parents=True, exist_ok=True)
    with _changing(folder):
        pointers = read_pointers(repositories[:1], name)
        before = answering or read_aliases(repositories, name).get(PRODUCTION, max(known))
        if alias == PRODUCTION and before != version and before in known:
            pointers[PREVIOUS] = Pointer(before)
        _write_pointers(folder, pointers | {alias: Pointer(version, share)})


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
    """The directory of `name` (its `production`, else its newest), `name/3` or `name/alias`.

    Raises:
        LookupError: there is none; the message lists what there is.
    """
    name, _, wanted = reference.partition("/")
    known = versions(repositories, name) if is_name(name) else {}
    if not known:
        raise LookupError(f"there is no model {name!r}; there are: {', '.join(names(repositories)) or 'none yet'}")
    aliases = read_aliases(repositories, name)
    unnamed = max(known) if not wanted else -1
    number = int(wanted) if wanted.isdecimal() else aliases.get(wanted or PRODUCTION, unnamed)
    if number not in known:
        raise LookupError(_no_version(repositories, name, wanted))
    return known[number]


def _no_version(repositories: Sequence[Path], name: str, wanted: str) -> str:
    numbers = ", ".join(map(str, versions(repositories, name))) or "none"
    aliases = ", ".join(read_aliases(repositories, name)) or "none"
    return f"model {name!r} has no version {wanted!r}; versions: {numbers}; aliases: {aliases}"


def publish(staged: Path, repositories: Sequence[Path], name: str, number: int) -> Path:
    """Make a staged version visible in the first repository.

    Raises:
        FileExistsError: the number was taken meanwhile; stage again under `next_number`.
        NotADirectoryError: a file stands where the model's folder should be.
    """
    target = repositories[0] / name / str(number)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:  # a file stands there, which no other number helps
        raise NotADirectoryError(errno.ENOTDIR, f"{target.parent} is no folder") from error
    commit(staged, target)
    return target


def next_number(repositories: Sequence[Path], name: str) -> int:
    """One more than the highest number in any repository."""
    return max(versions(repositories, name), default=0) + 1
