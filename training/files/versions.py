"""How a model repository lies on disk: `<name>/<version>/manifest.json`, and `<name>/aliases.json` for the movable names.

There may be several repositories: the first is written to, the others are only read.
"""

import errno
import json
from collections.abc import Sequence
from pathlib import Path

from training.contract import is_name
from training.files.directories import commit, write_atomically

MANIFEST = "manifest.json"
ALIASES = "aliases.json"


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
    """The aliases of a name; where two repositories hold one alias, the first repository's.

    Raises:
        ValueError: an aliases.json that is no object of names to numbers.
    """
    aliases: dict[str, int] = {}
    for repository in reversed(repositories):
        path = repository / name / ALIASES
        if path.is_file():
            content = json.loads(path.read_bytes())
            if not isinstance(content, dict) or not all(is_alias(key) and type(value) is int for key, value in content.items()):
                raise ValueError(f"{path} is no object of alias names to version numbers")
            aliases |= content
    return aliases


def is_alias(text: str) -> bool:
    """An alias is a name that cannot be taken for a number."""
    return is_name(text) and not text.isdecimal()


def write_alias(repositories: Sequence[Path], name: str, alias: str, version: int) -> None:
    """Point an alias at a version that exists, in the first repository.

    Raises:
        LookupError: no such version.
        ValueError: not a name for an alias.
    """
    if not is_alias(alias):
        raise ValueError(f"{alias!r} cannot be an alias: small letters, digits, '.', '_' and '-' are allowed, and not digits alone")
    if version not in versions(repositories, name):
        raise LookupError(_no_version(repositories, name, str(version)))
    folder = repositories[0] / name
    folder.mkdir(parents=True, exist_ok=True)
    aliases = read_aliases(repositories[:1], name) | {alias: version}
    write_atomically(folder / ALIASES, json.dumps(aliases, indent=2, sort_keys=True).encode() + b"\n")


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
    number = int(wanted) if wanted.isdecimal() else aliases.get(wanted or "production", unnamed)
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
