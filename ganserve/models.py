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

from ganserve.connection import Connection, check, wait_until_loaded
from ganserve.places import Repositories, settings
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
def _told() -> Iterator[None]:
    """Raises UserError for what cannot be done with aliases."""
    try:
        yield
    except (LookupError, ValueError) as error:
        raise UserError(str(error.args[0])) from error
    except OSError as error:
        raise UserError(f"the aliases stay as they are: {error.strerror}; they are written to the first repository") from error


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
