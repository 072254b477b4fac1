"""Images out of latents, between the route and the engine: encode, run, choose."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from app import latents, scoring, signature, visits
from app.engine import Engine
from app.errors import FieldError, Invalid, did_you_mean, show
from app.forms import Made
from app.schemas.inference import (
    DEFAULT_IMAGES,
    DEFAULT_IMAGES_A_CLASS,
    MAX_CANDIDATES,
    MAX_IMAGES,
    Anchor,
    GenerateRequest,
    InterpolateRequest,
)
from app.service import Service
from app.signature import Encoded, Fields
from training.contract import Manifest, TensorSpec

FEW_DRAWS = 16  # images whose latents are drawn on the event loop


async def generate(service: Service, body: GenerateRequest) -> Made:
    """Images of consecutive seeds, of the best of several seeds each, or of explicit latents.

    Raises:
        UnknownModel, UnknownVersion: not served.
        Invalid: a field that the model does not take, or a value that does not fit it.
        Overloaded: the queue is full.
    """
    engine = await service.store.engine(body.model, body.version)
    inputs = _drawn_inputs(engine.manifest)
    module = _module(engine, body.part)
    count, labels, columns = _class_rows(inputs, body)
    if body.best_of is not None:
        _check_best_of(engine, body, count)
    fields = Fields(seed=body.seed, latents=body.latents, truncation=body.truncation, labels=labels)
    best_of = body.best_of or 1
    with service.batcher.holding(engine, min(count * best_of, MAX_IMAGES)):  # of candidates, no more wait at a time
        encoded = await _encode(service, inputs, fields, count, best_of)
        request = _as_text(body, encoded)
        if body.best_of is not None:
            encoded = await _best(service, engine, encoded, body.best_of)
        images = await service.batcher.submit(engine, module, encoded.inputs)
    return Made(
        model=engine.manifest.name,
        version=engine.manifest.version,
        images=images,
        seeds=encoded.seeds,
        request=request,
        latents=encoded.inputs if body.return_latents else None,
        columns=columns or (1 if body.part else None),
    )


def check(engine: Engine, body: GenerateRequest) -> None:
    """Refuse what `generate` would not make of this engine, before anything is made; raises Invalid."""
    inputs = _drawn_inputs(engine.manifest)
    count, labels, _ = _class_rows(inputs, body)
    signature.check_taken(inputs, Fields(seed=body.seed, latents=body.latents, truncation=body.truncation, labels=labels))
    if body.best_of is not None:
        _check_best_of(engine, body, count)


async def _encode(service: Service, inputs: Sequence[TensorSpec], fields: Fields, count: int, best_of: int) -> Encoded:
    """A few draws take less time than the way to a thread and back, whatever their size; numbers that were given may take long to read."""
    weighted = any(isinstance(label, Mapping) for label in fields.labels or ())
    if fields.latents is None and not weighted and count * best_of <= FEW_DRAWS:
        with visits.current().spending("prepare"):
            return signature.encode(inputs, fields, count, best_of)
    return await service.in_pool(lambda: signature.encode(inputs, fields, count, best_of), "prepare", count)


def _as_text(body: GenerateRequest | InterpolateRequest, encoded: Encoded) -> str:
    """The request as it can be asked again, without its latents; a seed that was drawn is in it."""
    if encoded.seeds is not None:
        body = body.model_copy(update={"seed": encoded.seeds[0]})
    return body.model_dump_json(exclude_none=True, exclude={"return_latents": True, "latents": True, "anchors": {"__all__": {"latent"}}})


def _drawn_inputs(manifest: Manifest) -> tuple[TensorSpec, ...]:
    inputs = manifest.generator.inputs
    if any(spec.kind == "image" for spec in inputs):
        others = "" if len(inputs) > 1 else ": send it to /transform"
        raise Invalid(f"{manifest.name} makes its images of a picture, which this route cannot bring{others}")
    return inputs


def _module(engine: Engine, part: str | None) -> str:
    if part is None:
        return "generator"
    manifest = engine.manifest
    served = [name for name in engine.buckets if name in manifest.parts]
    if part in served:
        return part
    to_run = f"parts to run: {', '.join(served) or 'none'}"
    if part in manifest.parts:
        message = f"{part} takes other inputs than the generator, and can only be fetched; {to_run}"
    else:
        message = f"{manifest.name} has no part {show(part)}; {to_run}{did_you_mean(part, served)}"
    raise _wrong("part", message)


def _class_rows(inputs: Sequence[TensorSpec], body: GenerateRequest) -> tuple[int, Sequence[signature.Label] | None, int | None]:
    """How many images, with which labels, and how many in a row where that is given by the labels."""
    count = body.num_images or (None if body.latents is None else len(body.latents))
    classes = next((spec for spec in inputs if spec.kind == "label"), None)
    if body.labels != "all":
        return count or DEFAULT_IMAGES, body.labels, None
    if classes is None:
        return count or DEFAULT_IMAGES, ["all"], None  # refused by what the model takes
    labels, per_class = signature.every_class(classes, count, DEFAULT_IMAGES_A_CLASS, MAX_IMAGES)
    if body.columns not in (None, per_class):
        raise _wrong("columns", f'the labels "all" give each class a row, of {per_class} images here; leave columns out')
    return len(labels), labels, per_class


# --- the best of several ------------------------------------------------------------------------------------------------------


def _check_best_of(engine: Engine, body: GenerateRequest, count: int) -> None:
    if engine.manifest.discriminator is None:
        raise _wrong("best_of", f"{body.model} has no discriminator that could rank candidates; leave best_of out")
    if body.latents is not None:
        raise _wrong("best_of", "candidates are drawn, and latents are given; leave one of the two out")
    if (candidates := count * (body.best_of or 1)) > MAX_CANDIDATES:
        message = f"{count} images with the best of {body.best_of} are {candidates} candidates; at most {MAX_CANDIDATES} are allowed"
        raise _wrong("best_of", message)


async def _best(service: Service, engine: Engine, candidates: Encoded, best_of: int) -> Encoded:
    """Of each `best_of` neighbouring rows the one whose pixels the discriminator rates highest, of equals the first."""
    assert candidates.seeds is not None
    turn = MAX_IMAGES // best_of * best_of  # thousands of images at once would fill the memory
    kept: list[Tensor] = []
    for start in range(0, len(candidates.seeds), turn):
        inputs = {name: rows[start : start + turn] for name, rows in candidates.inputs.items()}
        images = await service.batcher.submit(engine, "generator", inputs)
        scores = await scoring.judge(service, engine, images, inputs)
        groups = scores.reshape(-1, best_of)
        best = torch.from_numpy(groups.numpy().argmax(1))  # NumPy promises the first of equals
        kept.append(start + torch.arange(len(groups)) * best_of + best)
    rows = torch.cat(kept)
    inputs = {name: values[rows] for name, values in candidates.inputs.items()}
    return Encoded(inputs, seeds=tuple(candidates.seeds[row] for row in rows.tolist()))


# --- walks --------------------------------------------------------------------------------------------------------------------


async def interpolate(service: Service, body: InterpolateRequest) -> Made:
    """Frames from anchor to anchor; raises as `generate` does."""
    engine = await service.store.engine(body.model, body.version)
    inputs = _drawn_inputs(engine.manifest)
    with service.batcher.holding(engine, body.num_frames):
        encoded = await service.in_pool(lambda: encode_walk(inputs, body), "prepare", body.num_frames)
        images = await service.batcher.submit(engine, "generator", encoded.inputs)
    return Made(
        model=engine.manifest.name,
        version=engine.manifest.version,
        images=images,
        seeds=None,
        request=_as_text(body, encoded),
        latents=encoded.inputs if body.return_latents else None,
    )


def encode_walk(inputs: Sequence[TensorSpec], body: InterpolateRequest) -> Encoded:
    """Keyword tensors of every frame: latents on the way from anchor to anchor, and labels likewise, in a straight line.

    Raises:
        Invalid: as `signature.encode` does.
    """
    signature.check_taken(inputs, Fields(truncation=body.truncation, labels=body.labels))
    specs = [spec for spec in inputs if spec.kind == "latent"]
    if not specs:
        raise Invalid(f"{body.model} takes no latent, so there is nothing to walk between")
    anchors = {spec.name: [_anchor(specs, spec, anchor, index) for index, anchor in enumerate(body.anchors)] for spec in specs}
    tensors = {name: torch.stack(points) for name, points in anchors.items()}
    if body.truncation is not None:
        tensors = latents.truncate(tensors, body.truncation)
    frames = {name: latents.path(points, body.steps, body.method) for name, points in tensors.items()}
    for spec in inputs:
        if spec.kind == "label":
            weights = signature.encode_labels(spec, body.labels, len(body.anchors), of="anchors")
            frames[spec.name] = latents.path(weights, body.steps, "lerp")
    return Encoded(frames, seeds=None)


def _anchor(specs: Sequence[TensorSpec], spec: TensorSpec, anchor: Anchor, index: int) -> Tensor:
    if anchor.seed is not None:
        return latents.draw(specs, [anchor.seed])[spec.name][0]
    return signature.encode_latent(spec, anchor.latent, f"/anchors/{index}/latent")


def _wrong(field: str, message: str) -> Invalid:
    return Invalid(f"{field}: {message}", errors=(FieldError(pointer=f"/{field}", message=message),))
