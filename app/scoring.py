"""What a discriminator says of pictures, and what that means."""

import math
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from torch import Tensor

from app import pictures, pixels, signature
from app.engine import Engine
from app.errors import FieldError, Invalid
from app.pictures import Upload
from app.pixels import Pixels
from app.schemas.inference import Score, Scores
from app.service import Service
from app.uploads import DiscriminateBody
from training.contract import ModuleSpec, ScoreReference, TensorSpec

_Column = Sequence[Pixels] | Tensor  # an input of all rows

# the field of a request that brings a condition of this kind
FIELD_OF_KIND: Mapping[str, str] = {"label": "labels", "image": "sources"}


async def discriminate(service: Service, body: DiscriminateBody) -> Scores:
    """What the model's discriminator says of pictures, each with its condition where it judges pairs.

    Raises:
        UnknownModel, UnknownVersion: not served.
        Invalid: the model has no discriminator, a condition is missing, or a field is given that the discriminator does not take.
        ImageInvalid, ImageTooLarge: a file that cannot be read, named.
        Overloaded: the queue is full.
    """
    engine = await service.store.engine(body.model, body.version)
    spec = discriminator_of(engine)
    _check_conditions(engine, spec, body)
    with service.batcher.holding(engine, len(body.uploads)):
        columns = await _columns(service, spec, body)
        scores = await _scores(service, engine, columns)
    manifest = engine.manifest
    return Scores(
        model=manifest.name,
        version=manifest.version,
        scores=[explain(upload.name, score, spec, manifest.score_reference) for upload, score in zip(body.uploads, scores, strict=True)],
    )


def discriminator_of(engine: Engine) -> ModuleSpec:
    """Raises Invalid where the version has none."""
    manifest = engine.manifest
    if manifest.discriminator is None:
        raise Invalid(f"{manifest.name} version {manifest.version} was published without a discriminator")
    return manifest.discriminator


def _check_conditions(engine: Engine, spec: ModuleSpec, body: DiscriminateBody) -> None:
    """Every condition has its field, and every field its condition.

    Raises:
        Invalid: it names the field.
    """
    given = {"labels": body.labels, "sources": body.sources}
    wanted = [FIELD_OF_KIND.get(condition.kind, condition.kind) for condition in spec.inputs[1:]]
    name = engine.manifest.name
    if len(set(wanted)) < len(wanted) or not set(wanted) <= set(given):
        raise Invalid(f"the discriminator of {name} wants {', '.join(wanted)} beside the picture, which this route cannot bring")
    for field, values in given.items():
        if values is not None and field not in wanted:
            takes = f"beside its files it takes {wanted[0]}" if wanted else "it takes files alone"
            raise _wrong(field, f"the discriminator of {name} takes no {field}, {takes}; leave them out")
    if "sources" in wanted and len(body.sources or ()) != len(body.uploads):
        count = len(body.sources or ())
        raise _wrong(
            "sources",
            f"the discriminator of {name} judges pairs: {len(body.uploads)} sources are wanted, one for each file in the same order,"
            f" and {count} {'is' if count == 1 else 'are'} given",
        )


async def _columns(service: Service, spec: ModuleSpec, body: DiscriminateBody) -> dict[str, _Column]:
    image, *conditions = spec.inputs
    files = await _read_all(service, body.uploads, image)
    columns: dict[str, _Column] = {image.name: files}
    for condition in conditions:
        columns[condition.name] = await _condition(service, condition, body, files)
    return columns


async def _read_all(service: Service, uploads: Sequence[Upload], spec: TensorSpec) -> list[Pixels]:
    """One by one, so that the files of several requests take turns, and what a client has left behind is not read."""
    if -1 in spec.shape:
        return [await service.in_decoders(partial(pictures.read_exactly, upload, spec)) for upload in uploads]
    return [await service.in_decoders(partial(pictures.read, upload, spec.shape)) for upload in uploads]


async def _condition(service: Service, spec: TensorSpec, body: DiscriminateBody, files: Sequence[Pixels]) -> _Column:
    if spec.kind == "label":
        return signature.encode_labels(spec, body.labels, len(files), of="files")
    assert body.sources is not None
    channels, *axes = spec.shape  # a source of free size is brought to its file's
    sources = []
    for source, file in zip(body.sources, files, strict=True):
        sides = [side // spec.scale if axis == -1 else axis for axis, side in zip(axes, file.shape[1:], strict=True)]
        sources.append(await service.in_decoders(partial(pictures.read, source, (channels, *sides))))
    return sources


async def _scores(service: Service, engine: Engine, columns: Mapping[str, _Column]) -> list[float]:
    """One a row; pictures of free size go one by one."""
    count = len(next(iter(columns.values())))
    step = 1 if engine.max_rows("discriminator") == 1 else count
    found: list[float] = []
    for start in range(0, count, step):
        rows = {name: values[start : start + step] for name, values in columns.items()}
        tensors = await service.in_pool(partial(_tensors, rows), "prepare", step)
        found += (await service.batcher.submit(engine, "discriminator", tensors)).tolist()
    return found


def _tensors(rows: Mapping[str, _Column]) -> dict[str, Tensor]:
    return {name: values if isinstance(values, Tensor) else pixels.from_uint8(np.stack(values)) for name, values in rows.items()}


async def judge(service: Service, engine: Engine, images: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
    """What /discriminate would say of images of the engine's own generator, with the labels that they were made with.

    Args:
        images: uint8 (N, C, H, W), as they would be answered.
        inputs: what the generator made them of.

    Returns:
        float32 (N,).

    Raises:
        Invalid: the discriminator wants more than a picture and such labels.
    """
    spec = discriminator_of(engine)
    labels = [tensor.name for tensor in engine.manifest.generator.inputs if tensor.kind == "label"]
    image, *conditions = spec.inputs
    if conditions and ([condition.kind for condition in conditions] != ["label"] or len(labels) != 1):
        raise Invalid(f"best_of: the discriminator of {engine.manifest.name} cannot rank its images, since it judges pairs")
    tensors = {image.name: await service.in_pool(lambda: pixels.from_uint8(images.numpy()), "prepare", len(images))}
    tensors |= {condition.name: inputs[labels[0]] for condition in conditions}
    return await service.batcher.submit(engine, "discriminator", tensors)


# --- what a score means -------------------------------------------------------------------------------------------------------


def explain(file: str, score: float, spec: ModuleSpec, reference: ScoreReference | None) -> Score:
    """A bare score means nothing by itself: say where it lies among scores of held-out real images and of generated ones."""
    return Score(
        file=file,
        score=score,
        probability=_sigmoid(score) if spec.output.kind == "logit" else None,
        percentile_real=None if reference is None else percentile(score, reference.real),
        percentile_generated=None if reference is None else percentile(score, reference.generated),
    )


def percentile(score: float, quantiles: Sequence[float]) -> float:
    """Percent of the reference that lies below a score, by linear interpolation between its quantiles; 0 below all, 100 above all."""
    return round(float(np.interp(score, quantiles, np.linspace(0, 100, len(quantiles)))), 1)


def _sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit)) if logit >= 0 else math.exp(logit) / (1 + math.exp(logit))


def _wrong(field: str, message: str) -> Invalid:
    return Invalid(f"{field}: {message}", errors=(FieldError(pointer=f"/{field}", message=message),))
