"""A picture is made of a picture: for models whose generator takes one image and nothing else."""

import base64
import json

import numpy as np

from app import encoders, pictures, tiles
from app.errors import Invalid
from app.forms import Made
from app.service import Service
from app.uploads import TransformBody
from training.contract import Manifest, ModuleSpec, TensorSpec
from training.probe import probe_shape


def is_transform(module: ModuleSpec) -> bool:
    """Whether it makes a picture of a picture."""
    return [spec.kind for spec in module.inputs] == ["image"]


async def transform(service: Service, body: TransformBody) -> Made:
    """What the model's generator makes of a picture.

    Raises:
        UnknownModel, UnknownVersion: not served.
        Invalid: the model takes something else, or pictures of another size.
        ImageInvalid, ImageTooLarge: no picture, or one of too many pixels.
        Overloaded: the queue is full.
    """
    engine = await service.store.engine(body.model, body.version)
    spec = _input(engine.manifest)
    with service.batcher.holding(engine, 1):
        image = await service.in_decoders(lambda: pictures.read_exactly(body.upload, spec))
        num_tiles = len(tiles.plan(spec, *image.shape[1:]))
        made = await service.batcher.run_steps(engine.transforming(image), num_tiles)
    name, version = engine.manifest.name, engine.manifest.version
    return Made(name, version, made.unsqueeze(0), seeds=None, request=json.dumps({"model": name, "version": version}))


def _input(manifest: Manifest) -> TensorSpec:
    inputs = manifest.generator.inputs
    if is_transform(manifest.generator):
        return inputs[0]
    takes = ", ".join(dict.fromkeys(spec.kind for spec in inputs))
    others = "; ask /generate for its images" if "image" not in takes else ""
    raise Invalid(f"{manifest.name} makes images of {takes}, and this route wants a model that takes one picture and nothing else{others}")


def example_picture(spec: TensorSpec) -> str:
    """A picture of a size that the input takes, as base64 of a PNG: colours that run into each other."""
    channels, height, width = probe_shape(spec)
    ramps = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    waves = np.stack([np.sin(3 * (1 + index) * ramps[index % 2] + ramps[0] * ramps[1]) for index in range(channels)], axis=-1)
    content = encoders.png(((waves + 1) * 127.5).astype(np.uint8))
    return base64.b64encode(content).decode("ascii")
