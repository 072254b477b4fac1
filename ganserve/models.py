"""`ganserve models` and `ganserve architectures`: what is served, and what can be trained."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import httpx
from cyclopts import App, Parameter
from cyclopts.validators import Number

from ganserve.confirming import Confirmation, Offered
from ganserve.connection import Connection, check, wait_until_loaded
from ganserve.places import Repositories, State, settings
from training.contract import UserError

models_app = App(name="models", help="List and show models, and name their versions.")


@models_app.command(name="list")
def list_(*, connection: Connection = Connection()) -> None:
    """List the models that are served, and what is broken and why."""

    async def question(client: httpx.AsyncClient) -> httpx.Response:
        await wait_until_loaded(client)  # what is broken shows then
        return check(await client.get("/models"))

    listing = connection.ask(question).json()
    if not listing["models"]:
        print("no model is served: train one with `ganserve train`, or name its repository with --models", file=sys.stderr)
    for model in listing["models"]:
        aliases = "".join(f", {alias} is {version}" for alias, version in model["aliases"].items())
        if model["canary_share"] is not None:
            aliases += f" for {100 * model['canary_share']:g} % of the requests"
        versions = ", ".join(str(version) for version in model["versions"])
        print(f"{model['name']}: {model['architecture']}, versions {versions}{aliases}")
    for broken in listing["broken"]:
        print(f"broken: {broken['name']} version {broken['version']}: {broken['reason']}")


@models_app.command
def show(
    model: Annotated[str, Parameter(help="`model/version`, with a number or an alias; `model` is the version that answers.")],
    /,
    *,
    connection: Connection = Connection(),
) -> None:
    """Show a version's manifest: data, config, figures, and the command that trains it again."""
    name, version = (quote(part, safe="") for part in model.partition("/")[::2])

    async def question(client: httpx.AsyncClient) -> httpx.Response:
        number = version or str(check(await client.get(f"/models/{name}")).json()["version"])
        return check(await client.get(f"/models/{name}/{number}"))

    print(json.dumps(connection.ask(question).json(), indent=2))


@models_app.command
def trust(
    version: Annotated[str, Parameter(help="`model/version`, with the number that it has.")],
    /,
    *,
    confirmation: Confirmation = Confirmation(),
    models: Repositories = (),
    state: State = None,
) -> None:
    """Confirm a version that lies in a repository and is not known here; a running server loads it within two seconds.

    A model file is code: confirm what you know the origin of, by the digest that its publisher tells you.
    """
    from training.files import digests, versions

    found = settings(models, state)
    with _told():
        folder = versions.find(version, found.models)
    offered = Offered.read(folder)
    if offered.digest in digests.known(found.digests):
        print(f"{offered.version} is known here already")
        return
    confirmation.ask(offered, "load it from now on")
    digests.remember(found.digests, offered.digest, offered.version, "confirmed")
    print(f"{offered.version} is trusted, and served within two seconds")


@models_app.command
def remove(
    version: Annotated[str, Parameter(help="`model/version`, with the number that it has.")],
    /,
    *,
    models: Repositories = (),
) -> None:
    """Remove a version from the disk; its number is not used again. What an alias names stays, and what a pinned model answers with."""
    from training.files import versions

    found = settings(models, None)
    name, _, number = version.partition("/")
    if not number.isascii() or not number.isdecimal():
        raise UserError(f"{version} is no version: give the model and its number, as digits/1")
    with _told(f"{version} stays"):
        versions.remove(found.models, name, int(number), found.pins)
    print(f"{version} is removed, and its number is not used again")


@models_app.command
def prune(
    name: Annotated[str, Parameter(help="The model.")],
    /,
    *,
    keep: Annotated[int, Parameter(help="How many of the newest versions stay.", validator=Number(gte=1))],
    dry_run: Annotated[bool, Parameter(help="Say what would go; remove nothing.")] = False,
    models: Repositories = (),
) -> None:
    """Remove all but the newest versions, those that an alias names, and what a pinned model answers with."""
    from training.files import versions

    found = settings(models, None)
    with _told("nothing more is removed"):
        versions.find(name, found.models)
        gone = (versions.prunable if dry_run else versions.prune)(found.models, name, keep, found.pins)
    print(f"{name}: {'would remove' if dry_run else 'removed'} {', '.join(map(str, gone)) or 'nothing'}")


@models_app.command
def alias(
    name: Annotated[str, Parameter(help="The model.")],
    alias: Annotated[str, Parameter(help="`production` answers where no version is asked for; any other name is yours.")],
    version: Annotated[str, Parameter(help="The version's number, or another alias: `previous` is what `production` was before.")],
    /,
    *,
    share: Annotated[float, Parameter(help="For `canary`: its share of the requests that ask for no version, from 0 to 1.")] = 0.0,
    models: Repositories = (),
) -> None:
    """Point an alias at a version; a running server follows within two seconds."""
    from training.files import versions

    repositories: tuple[Path, ...] = settings(models, None).models
    with _told():
        number = int(versions.find(f"{name}/{version}", repositories).name)
        versions.write_alias(repositories, name, alias, number, share=share)
    print(f"{name}: {alias} is version {number}")


@models_app.command
def unalias(
    name: Annotated[str, Parameter(help="The model.")],
    alias: Annotated[str, Parameter(help="The alias to take away.")],
    /,
    *,
    models: Repositories = (),
) -> None:
    """Take an alias away; a running server follows within two seconds."""
    from training.files import versions

    with _told():
        versions.remove_alias(settings(models, None).models, name, alias)
    print(f"{name}: {alias} is no alias any more")


@contextmanager
def _told(otherwise: str = "the aliases stay as they are") -> Iterator[None]:
    """Raises UserError for what cannot be done in a repository."""
    from training.files.versions import KeptError

    try:
        yield
    except (LookupError, ValueError, KeptError) as error:
        raise UserError(str(error.args[0])) from error
    except OSError as error:
        raise UserError(f"{otherwise}: {error.strerror}; the first repository is the one that is written to") from error


def architectures(*, connection: Connection = Connection()) -> None:
    """List what can be trained: architectures, losses and penalties with their options, and data sets."""

    async def question(client: httpx.AsyncClient) -> httpx.Response:
        return check(await client.get("/architectures"))

    catalog = connection.ask(question).json()
    kinds = (("architecture", "architectures", "options"), ("loss", "losses", "loss-options"), ("penalty", "penalties", "penalty-options"))
    for kind, field, prefix in kinds:
        for entry in catalog[field]:
            print(f"{kind} {entry['name']}: {entry['summary']} {entry['source']}")
            for name, option in entry["options"].get("properties", {}).items():
                print(f"    --{prefix}.{name.replace('_', '-')} ({json.dumps(option['default'])}): {option.get('description', '')}")
    for dataset in catalog["datasets"]:
        print(f"data set {dataset['name']}: {dataset['num_images']:,} images of {'x'.join(map(str, dataset['shape']))}")
