"""`ganserve models download`, `import`, `push` and `pull`: versions out of a repository, and from elsewhere into it.

What comes from elsewhere comes in here alone, at the command line of the machine's owner, who is shown its digest and confirms it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Annotated
from urllib.parse import quote

import httpx
from cyclopts import Parameter

from ganserve.confirming import Confirmation, Offered
from ganserve.connection import Connection, check
from ganserve.places import Repositories, State, settings
from training.contract import UserError, is_name
from training.files import versions
from training.files.archives import ArchiveError, Source, TakenError, admit, check_free, described, opened_zip, zipped
from training.files.directories import DamagedFileError

Version = Annotated[str, Parameter(help="`model/version`, with a number or an alias; `model` is the version that answers.")]
As = Annotated[str | None, Parameter(name="--as", help="Another name for it; it gets that model's next number.", show_default=False)]


def download(
    version: Version,
    /,
    *,
    output: Annotated[
        Path | None, Parameter(name=["--output", "-o"], help="The file; `<model>-<number>.zip` when left out.", show_default=False)
    ] = None,
    connection: Connection = Connection(),
) -> None:
    """Download a version as one ZIP: its manifest, networks and sample grid."""
    name, _, number = version.partition("/")
    if connection.server is None:
        folder = found(version, connection.models)
        offered = Offered.read(folder)
        path = output or Path(f"{name}-{folder.name}.zip")
        with written(path) as file:
            for piece in zipped(folder, offered.digest):
                file.write(piece)
        print(f"{path}: {offered.version}, sha256 of its manifest {offered.digest}")
        return

    async def question(client: httpx.AsyncClient) -> tuple[Path, str]:
        model = quote(name, safe="")
        known = quote(number, safe="") or str(check(await client.get(f"/models/{model}")).json()["version"])
        async with client.stream("GET", f"/models/{model}/{known}/archive") as response:
            if not response.is_success:
                await response.aread()
            check(response)
            path = output or Path(f"{name}-{known}.zip")
            with written(path) as file:
                async for piece in response.aiter_bytes():
                    file.write(piece)
            return path, response.headers["etag"].strip('"')

    path, digest = connection.ask(question)
    print(f"{path}: {version}, sha256 of its manifest {digest}")


def import_(
    archive: Annotated[Path, Parameter(help="A ZIP that `ganserve models download` or GET /models/{name}/{version}/archive made.")],
    /,
    *,
    as_: As = None,
    confirmation: Confirmation = Confirmation(),
    models: Repositories = (),
    state: State = None,
) -> None:
    """Take in a version from a ZIP, under its own name and number, or under another name; you are shown its digest and asked."""
    try:
        with opened_zip(archive) as source:
            _take_in(source, f"{archive}", as_, confirmation, models, state)
    except ArchiveError as error:
        raise UserError(f"{archive} cannot be taken in: {error}") from error


def push(
    version: Version,
    url: Annotated[str, Parameter(help="A directory, or s3://bucket/folder; the version is put below it, as <name>/<number>/.")],
    /,
    *,
    models: Repositories = (),
) -> None:
    """Copy a version to a directory, or to a store by the protocol of S3."""
    from ganserve import stores

    folder = found(version, models)
    offered = Offered.read(folder)
    target = stores.reach(url) / offered.manifest.name / folder.name
    is_new = stores.push(folder, offered, target)
    print(f"{target.url}: {offered.version} {'is there' if is_new else 'was there already'}, sha256 of its manifest {offered.digest}")


def pull(
    url: Annotated[str, Parameter(help="What `ganserve models push` printed: <directory or s3://bucket/folder>/<name>/<number>.")],
    /,
    *,
    as_: As = None,
    confirmation: Confirmation = Confirmation(),
    models: Repositories = (),
    state: State = None,
) -> None:
    """Take in a version from a directory or a store, as `import` does from a ZIP."""
    from ganserve import stores

    source = stores.reach(url)
    with stores.told(source):
        _take_in(source, url, as_, confirmation, models, state)


def _take_in(
    source: Source, whence: str, name: str | None, confirmation: Confirmation, models: tuple[Path, ...], state: Path | None
) -> None:
    if name is not None and not is_name(name):
        raise UserError(f"--as {name!r} is no name: 1 to 63 small letters, digits, '.', '_' and '-' are allowed")
    where = settings(models, state)
    content, manifest = described(source)
    offered = Offered(content, manifest)
    try:
        if name is None:
            check_free(offered.manifest, offered.digest, where.models)
        confirmation.ask(offered, f"take it in as {name or offered.version}")
        version = admit(source, content, where.models, where.digests, f"from {whence}", name)
    except TakenError as error:
        raise UserError(f"{error}: give another name with --as NAME, which may be the same one, for its next number") from error
    print(f"{version} is here, and served within two seconds")


def found(version: str, models: tuple[Path, ...]) -> Path:
    """The folder of a version that lies here.

    Raises:
        UserError: there is none.
    """
    try:
        return versions.find(version, settings(models, None).models)
    except (LookupError, ValueError) as error:
        raise UserError(str(error.args[0])) from error


@contextmanager
def written(path: Path) -> Iterator[IO[bytes]]:
    """A file that is there when it is whole, or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            yield file
        partial.rename(path)
    except DamagedFileError as error:
        partial.unlink(missing_ok=True)
        raise UserError(f"{path} was not written: {error}") from error
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UserError(f"{path} cannot be written: {error.strerror}") from error
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
