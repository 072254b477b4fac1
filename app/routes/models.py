"""What is served."""

from typing import Annotated

from fastapi import APIRouter, Path, Response
from fastapi.responses import FileResponse, StreamingResponse

from app import fetching
from app.cards import model_card
from app.schemas.common import MAX_JSON_BYTES
from app.schemas.models import (
    AliasRequest,
    BrokenVersion,
    ModelAliases,
    ModelCard,
    Models,
    ModelVersions,
    PartCard,
    VersionCard,
    VersionFigures,
)
from app.service import ADMINISTRATIVE, Service, ServiceOf
from app.store import Served
from app.transform import is_transform
from training.commands import train_command
from training.contract import Manifest

MARKDOWN = "text/markdown"  # RFC 7763
ZIP = "application/zip"

router = APIRouter(tags=["models"], dependencies=[ADMINISTRATIVE])
Name = Annotated[str, Path(max_length=63)]
Version = Annotated[str, Path(max_length=63)]
Alias = Annotated[str, Path(max_length=63)]
FileName = Annotated[str, Path(max_length=100)]


@router.get("/models", summary="List what is served, and what is broken")
async def list_models(service: ServiceOf) -> Models:
    """Each model by the version that answers where none is named, and every version that was left out, with the reason."""
    listing = service.store.listing()
    return Models(
        models=[_card(served) for served in listing.models],
        broken=[BrokenVersion.model_validate(broken, from_attributes=True) for broken in listing.broken],
    )


@router.get("/models/{name}", summary="Look at a model")
async def show_model(name: Name, service: ServiceOf) -> ModelVersions:
    """Every version of a model in a few words, and its aliases."""
    card = _card(service.store.served(name))
    return ModelVersions(**card.model_dump(), history=[_figures(manifest) for manifest in service.store.manifests(name)])


@router.get("/models/{name}/{version}", summary="Look at a version")
async def show_version(name: Name, version: Version, service: ServiceOf) -> VersionCard:
    """The whole manifest: inputs, data, config, figures, hashes, and the command that trains it again. `version`: a number or an alias."""
    manifest = service.store.manifest(name, version)
    return VersionCard(manifest=manifest, command=train_command(manifest.config))


@router.get("/models/{name}/{version}/samples.png", response_class=FileResponse, summary="A version's sample grid")
async def samples(name: Name, version: Version, service: ServiceOf) -> FileResponse:
    """The images of seeds 0 to 63, as they were when the version was published."""
    samples = service.store.manifest(name, version).samples.file
    return await file(name, version, samples, service)


@router.get(
    "/models/{name}/{version}/card",
    response_class=Response,
    responses={200: {"content": {MARKDOWN: {}}}},
    summary="A version's model card",
)
async def card(name: Name, version: Version, service: ServiceOf) -> Response:
    """Markdown: samples, what it takes and gives, data, figures, recipe, files, and the command that trains it again."""
    return Response(model_card(service.store.manifest(name, version)), media_type=f"{MARKDOWN}; charset=utf-8")


@router.head("/models/{name}/{version}/files/{file}", include_in_schema=False)
@router.get("/models/{name}/{version}/files/{file}", response_class=FileResponse, summary="Fetch a version's file")
async def file(name: Name, version: Version, file: FileName, service: ServiceOf) -> FileResponse:
    """Any file that the manifest names: TorchScript modules, parts, samples. The ETag is the file's SHA-256."""
    path, spec = await service.store.file(name, version, file)
    media_type = "image/png" if path.suffix == ".png" else "application/octet-stream"
    return FileResponse(path, media_type=media_type, headers={"ETag": f'"{spec.sha256}"'})


@router.get(
    "/models/{name}/{version}/archive",
    response_class=StreamingResponse,
    responses={200: {"content": {ZIP: {}}}},
    summary="Download a version as one ZIP",
)
async def archive(name: Name, version: Version, service: ServiceOf) -> StreamingResponse:
    """Every file of a version, verified, and its manifest, whose SHA-256 is the ETag: `ganserve models import` takes it in elsewhere."""
    entry = service.store.entry(name, version)
    headers = {"ETag": f'"{entry.digest}"', "Content-Disposition": f'attachment; filename="{entry.name}-{entry.number}.zip"'}
    return StreamingResponse(await fetching.archive(entry), media_type=ZIP, headers=headers)


@router.delete("/models/{name}/{version}", status_code=204, summary="Remove a version")
async def remove(name: Name, version: Version, service: ServiceOf) -> None:
    """By its number, which is not used again. Requests that run end on it. What an alias names, or what answers of a pinned model, stays:
    409."""
    await service.store.remove(name, version)


@router.put("/models/{name}/aliases/{alias}", max_body_size=MAX_JSON_BYTES, summary="Point an alias at a version")
async def point(name: Name, alias: Alias, body: AliasRequest, service: ServiceOf) -> ModelAliases:
    """The version is loaded, verified, proved and warm before the alias moves; the answer comes when it serves. Requests that run end
    with the version that they began with.

    `production` answers where no version is named; when it moves, `previous` names what answered before, so `{"version": "previous"}` is
    the way back. `canary` may answer a `share` of the requests that name no version, exactly and evenly spread: of 0.05, each twentieth.
    """
    await service.store.point(name, alias, body.version, body.share)
    return _aliases(name, service)


@router.delete("/models/{name}/aliases/{alias}", summary="Take an alias away")
async def unpoint(name: Name, alias: Alias, service: ServiceOf) -> ModelAliases:
    """Without `production`, the newest version answers, once it is loaded, and `previous` names what answered before."""
    await service.store.unpoint(name, alias)
    return _aliases(name, service)


def _aliases(name: str, service: Service) -> ModelAliases:
    served = service.store.served(name)
    return ModelAliases(name=name, version=served.manifest.version, aliases=dict(served.aliases), canary_share=served.canary_share)


def _figures(manifest: Manifest) -> VersionFigures:
    return VersionFigures(
        version=manifest.version,
        architecture=manifest.architecture,
        dataset=manifest.dataset.name,
        metrics=manifest.metrics,
        created_at=manifest.created_at,
    )


def _card(served: Served) -> ModelCard:
    manifest = served.manifest
    return ModelCard(
        name=manifest.name,
        version=manifest.version,
        versions=list(served.versions),
        aliases=dict(served.aliases),
        canary_share=served.canary_share,
        loaded=served.is_loaded,
        num_bytes=served.num_bytes,
        architecture=manifest.architecture,
        source=manifest.source,
        inputs=list(manifest.generator.inputs),
        output=manifest.generator.output,
        has_discriminator=manifest.discriminator is not None,
        conditions=[] if manifest.discriminator is None else list(manifest.discriminator.inputs[1:]),
        transforms=is_transform(manifest.generator),
        parts=[
            PartCard(name=name, inputs=list(part.inputs), output=part.output, served=name in served.modules)
            for name, part in manifest.parts.items()
        ],
        batch_sizes={name: list(sizes) for name, sizes in served.buckets.items()},
        backends=dict(served.backends),
        dataset=manifest.dataset.name,
        created_at=manifest.created_at,
    )
