"""The three questions put to a model, between the route and the engine: encode, run, and say what came out."""

import base64
import binascii
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor

from app import latents, pixels, signature
from app.engine import Engine
from app.errors import FieldError, ImageInvalid, ImageTooLarge, Invalid, Problem
from app.forms import Made
from app.schemas import DEFAULT_IMAGES, Anchor, GenerateRequest, InterpolateRequest, Score, Scores
from app.service import Service
from app.signature import Encoded, Fields
from training.contract import ModuleSpec, ScoreReference, TensorSpec
from training.files.pictures import PictureError, PictureTooLargeError, read_picture


async def generate(service: Service, body: GenerateRequest) -> Made:
    """Images of consecutive seeds, or of explicit latents.

    Raises:
        UnknownModel, UnknownVersion: not served.
        Invalid: a field that the model does not take, or a value that does not fit it.
        Overloaded: the queue is full.
    """
    engine = await service.store.engine(body.model, body.version)
    count = body.num_images or len(body.latents or range(DEFAULT_IMAGES))
    fields = Fields(seed=body.seed, latents=body.latents, truncation=body.truncation, labels=body.labels)
    encoded = await service.in_pool(lambda: signature.encode(engine.manifest.generator.inputs, fields, count))
    return await _make(service, engine, encoded, body, return_latents=body.return_latents)


async def interpolate(service: Service, body: InterpolateRequest) -> Made:
    """Frames from anchor to anchor; raises as `generate` does."""
    engine = await service.store.engine(body.model, body.version)
    encoded = await service.in_pool(lambda: encode_walk(engine.manifest.generator.inputs, body))
    return await _make(service, engine, encoded, body, return_latents=body.return_latents)


async def _make(service: Service, engine: Engine, encoded: Encoded, body: BaseModel, *, return_latents: bool) -> Made:
    images = await service.batcher.submit(engine, "generator", encoded.inputs)
    return Made(
        model=engine.manifest.name,
        version=engine.manifest.version,
        images=images,
        seeds=encoded.seeds,
        request=body.model_dump_json(
            exclude_none=True, exclude={"return_latents": True, "latents": True, "anchors": {"__all__": {"latent"}}}
        ),
        latents=encoded.inputs if return_latents else None,
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
            frames[spec.name] = latents.path(signature.encode_labels(spec, body.labels, len(body.anchors)), body.steps, "lerp")
    return Encoded(frames, seeds=None)


def _anchor(specs: Sequence[TensorSpec], spec: TensorSpec, anchor: Anchor, index: int) -> Tensor:
    if anchor.seed is not None:
        return latents.draw(specs, [anchor.seed])[spec.name][0]
    return signature.encode_latent(spec, anchor.latent, f"/anchors/{index}/latent")


# --- scoring ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Upload:
    """A file as it came: what the client calls it, where it stands in the body, and its bytes."""

    name: str
    pointer: str
    content: bytes


def from_base64(images: Sequence[str]) -> list[Upload]:
    """Pictures out of a JSON body.

    Raises:
        ImageInvalid: what is no base64.
    """
    uploads = []
    for index, text in enumerate(images):
        pointer = f"/images/{index}"
        try:
            uploads.append(Upload(f"images[{index}]", pointer, base64.b64decode(text, validate=True)))
        except (binascii.Error, ValueError) as error:
            message = f"images[{index}] is no base64 ({error}); the base64 of a PNG, JPEG, WebP, BMP or GIF file is allowed"
            raise ImageInvalid(message, errors=(FieldError(pointer=pointer, message=message),)) from error
    return uploads


async def discriminate(service: Service, model: str, version: int | str | None, uploads: Sequence[Upload]) -> Scores:
    """What the model's discriminator says of pictures.

    Raises:
        UnknownModel, UnknownVersion: not served.
        Invalid: the model has no discriminator, or one that wants more than a picture.
        ImageInvalid, ImageTooLarge: a file that cannot be read, named.
        Overloaded: the queue is full.
    """
    engine = await service.store.engine(model, version)
    spec = _discriminator(engine)
    images = await decode(service, uploads, spec.inputs[0])
    scores = await service.batcher.submit(engine, "discriminator", {spec.inputs[0].name: images})
    manifest = engine.manifest
    return Scores(
        model=manifest.name,
        version=manifest.version,
        scores=[
            explain(upload.name, score, spec, manifest.score_reference) for upload, score in zip(uploads, scores.tolist(), strict=True)
        ],
    )


def _discriminator(engine: Engine) -> ModuleSpec:
    manifest = engine.manifest
    if manifest.discriminator is None:
        raise Invalid(f"{manifest.name} version {manifest.version} was published without a discriminator")
    others = [spec.kind for spec in manifest.discriminator.inputs[1:]]
    if others:
        raise Invalid(f"the discriminator of {manifest.name} wants {', '.join(others)} beside the picture, which this route does not take")
    return manifest.discriminator


async def decode(service: Service, uploads: Sequence[Upload], spec: TensorSpec) -> Tensor:
    """Pictures as the discriminator knows them: (N, C, H, W) float32 in [-1, 1], by the steps of training.files.pictures."""
    channels, height, width = spec.shape
    # one by one, so that the files of several requests take turns, and what a client has left behind is not read
    read = [await service.in_decoders(partial(_read, upload, (channels, height, width))) for upload in uploads]
    return pixels.from_uint8(np.stack(read))


def _read(upload: Upload, shape: tuple[int, int, int]) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    try:
        return read_picture(io.BytesIO(upload.content), shape)
    except PictureError as error:
        message = f"{upload.name}: {error}"
        kind: type[Problem] = ImageTooLarge if isinstance(error, PictureTooLargeError) else ImageInvalid
        raise kind(message, errors=(FieldError(pointer=upload.pointer, message=str(error)),)) from error


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
