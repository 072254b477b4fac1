"""From the tensors of a request to the tensors of its answer."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from app import forms, latents, pictures, pixels, signature, tiles
from app.engine import Engine
from app.errors import Invalid
from app.forms import Made
from app.pictures import Upload
from app.protocol.documents import RequestedOutput, RequestParameters
from app.protocol.signature import GENERATOR, PNG, SEED, check, find, latents_of, split, wanted
from app.protocol.tensors import Answer, Request, Tensor, check_length, write
from app.schemas.inference import GenerateRequest
from app.service import Service
from app.signature import MAX_LATENT
from app.transform import is_transform
from training.contract import MAX_SEED, ModuleSpec, TensorSpec

Columns = dict[str, torch.Tensor]  # by input name: float32, but uint8 (N, C, H, W) of pictures


@dataclass(frozen=True)
class _Call:
    """A request that fits its model, and the model."""

    engine: Engine
    module: str
    spec: ModuleSpec
    version: str | None  # as it was asked for
    request: Request
    outputs: Sequence[RequestedOutput]
    count: int

    @property
    def parameters(self) -> RequestParameters:
        return self.request.document.parameters

    @property
    def seeds(self) -> list[int] | None:
        given = self.request.tensors.get(SEED)
        return None if given is None else [int(seed) for seed in given.values]


async def infer(service: Service, name: str, version: str | None, request: Request) -> Answer:
    """The answer of a model, or of one of its modules.

    Raises:
        UnknownModel, UnknownVersion: not served.
        Invalid: tensors that the model does not take, or does not give.
        ImageInvalid, ImageTooLarge: a picture that cannot be read, or is too large.
        Overloaded: the queue is full.
    """
    model, module = split(name)
    engine = await service.store.engine(model, version)
    spec = find(engine.manifest, module)
    if request.document.model_name not in (None, name):
        raise Invalid(f"model_name: the path says {name}; say the same, or leave it out")
    outputs = wanted(spec, request.document.outputs)
    call = _Call(engine, module, spec, version, request, outputs, check(spec, request.tensors))
    with service.batcher.holding(engine, call.count):
        columns = await _columns(service, call)
        for output in outputs:
            if output.name != PNG and not _is_binary(call, output):
                check_length(output.name, _num_values(call, columns))
        results = await _run(service, call, columns)
    head = {"model_name": name, "model_version": str(engine.manifest.version)}
    head |= {} if request.document.id is None else {"id": request.document.id}

    def written() -> Answer:
        result = torch.cat(results)
        return write(head, [(_tensor(call, output.name, result), _is_binary(call, output)) for output in outputs])

    answer = await service.in_pool(written, "encode", call.count)
    return replace(answer, headers=answer.headers | {"X-Model": model, "X-Version": str(engine.manifest.version)})


# --- inputs -------------------------------------------------------------------------------------------------------------------


async def _columns(service: Service, call: _Call) -> Columns:
    columns = await service.in_pool(partial(_drawn, call), "prepare", call.count)
    for spec in call.spec.inputs:
        if spec.kind == "image":
            columns[spec.name] = await _pictures(service, spec, call.request.tensors[spec.name], exact=call.module == GENERATOR)
    sides = {tuple(side * spec.scale for side in columns[spec.name].shape[2:]) for spec in call.spec.inputs if spec.kind == "image"}
    if len(sides) > 1:
        raise Invalid("inputs: the pictures of a row belong together, and the sizes of these do not")
    return columns


def _drawn(call: _Call) -> Columns:
    """The latents and labels."""
    tensors, specs = call.request.tensors, call.spec.inputs
    if call.seeds is None:
        drawn = {name: _latent(tensors[name]) for name in latents_of(call.spec)}
    else:
        if not all(0 <= seed <= MAX_SEED for seed in call.seeds):
            raise tensors[SEED].wrong(f"seeds are 0 to {MAX_SEED}")
        drawn = latents.draw(specs, call.seeds)
    if call.parameters.truncation is not None:
        if not drawn:
            raise Invalid("parameters.truncation: the model takes no latent that it could scale; leave it out")
        drawn = latents.truncate(drawn, call.parameters.truncation)
    labels = {spec.name: signature.encode_labels(spec, _labels(call, spec), call.count) for spec in specs if spec.kind == "label"}
    return drawn | labels


def _latent(tensor: Tensor) -> torch.Tensor:
    if not (np.abs(tensor.values) <= MAX_LATENT).all():
        raise tensor.wrong(f"numbers from {-MAX_LATENT:g} to {MAX_LATENT:g} are allowed")
    return torch.tensor(tensor.values, dtype=torch.float32)


def _labels(call: _Call, spec: TensorSpec) -> list[signature.Label]:
    """The weights as /generate takes them; of one class alone, its name."""
    classes = spec.classes or [str(index) for index in range(spec.shape[0])]
    rows = (dict(zip(classes, row, strict=True)) for row in call.request.tensors[spec.name].values.tolist())
    given = [{name: weight for name, weight in row.items() if weight != 0} or row for row in rows]
    return [next(iter(row)) if list(row.values()) == [1] else row for row in given]


async def _pictures(service: Service, spec: TensorSpec, tensor: Tensor, *, exact: bool) -> torch.Tensor:
    """(N, C, H, W). A discriminator's are brought to its size, as by /discriminate; a generator's must have it, as for /transform."""
    if tensor.datatype == "UINT8":
        return await service.in_pool(lambda: torch.tensor(tensor.values).permute(0, 3, 1, 2).contiguous(), "prepare", len(tensor.values))
    if -1 in spec.shape and len(tensor.values) > 1:
        raise tensor.wrong("files have sizes of their own: send one, or the pixels of several pictures of one size as UINT8")
    exact = exact or -1 in spec.shape
    read = partial(pictures.read_exactly, spec=spec) if exact else partial(pictures.read, shape=spec.shape)
    uploads = [Upload(f"{tensor.name}[{row}]", tensor.pointer, content) for row, content in enumerate(tensor.values)]
    decoded = [await service.in_decoders(partial(read, upload)) for upload in uploads]
    return await service.in_pool(lambda: torch.from_numpy(np.stack(decoded)), "prepare", len(decoded))


# --- running ------------------------------------------------------------------------------------------------------------------


def _num_values(call: _Call, columns: Columns) -> int:
    """Of the output that the module declares."""
    shape = call.spec.output.shape
    if call.spec.output.kind != "image":
        return call.count
    if -1 in shape:  # as large as its picture is
        picture = next(spec for spec in call.spec.inputs if spec.kind == "image")
        shape = (shape[0], *(side * picture.scale for side in columns[picture.name].shape[2:]))
    return call.count * math.prod(shape)


async def _run(service: Service, call: _Call, columns: Columns) -> list[torch.Tensor]:
    """uint8 (N, C, H, W), or float32 (N,): of some rows each, in their order."""
    engine, specs = call.engine, call.spec.inputs
    if call.module == GENERATOR and is_transform(call.spec):
        images = columns[specs[0].name]
        num_tiles = len(tiles.plan(specs[0], *images.shape[2:]))
        return [(await service.batcher.run_steps(engine.transforming(image.numpy()), num_tiles)).unsqueeze(0) for image in images]
    step = 1 if engine.max_rows(call.module) == 1 else call.count  # large pictures become floats one by one
    results = []
    for start in range(0, call.count, step):
        rows = {name: values[start : start + step] for name, values in columns.items()}
        inputs = await service.in_pool(partial(_scaled, rows), "prepare", step)
        results.append(await service.batcher.submit(engine, call.module, inputs))
    return results


def _scaled(rows: Mapping[str, torch.Tensor]) -> Columns:
    return {name: pixels.from_uint8(values.numpy()) if values.dtype == torch.uint8 else values for name, values in rows.items()}


# --- outputs ------------------------------------------------------------------------------------------------------------------


def _is_binary(call: _Call, output: RequestedOutput) -> bool:
    binary = output.parameters.binary_data
    return call.parameters.binary_data_output if binary is None else binary


def _tensor(call: _Call, name: str, result: torch.Tensor) -> Tensor:
    if name == PNG:
        files = np.empty(len(result), dtype=object)
        files[:] = _files(call, result)
        return Tensor(PNG, "BYTES", files)
    if call.spec.output.kind != "image":
        return Tensor(name, "FP32", result.numpy())
    return Tensor(name, "UINT8", np.ascontiguousarray(result.permute(0, 2, 3, 1).numpy()))


def _files(call: _Call, result: torch.Tensor) -> list[bytes]:
    """Row i depends on row i of the inputs alone: it is the file that /generate gives for one image of that seed and label."""
    made = (
        Made(
            call.engine.manifest.name,
            call.engine.manifest.version,
            result[row : row + 1],
            None if call.seeds is None else (call.seeds[row],),
            _as_text(call, row),
        )
        for row in range(call.count)
    )
    return [forms.still(forms.PNG, one, columns=None) for one in made]


def _as_text(call: _Call, row: int) -> str:
    """The request for this image alone, as /generate or /transform would note it in the PNG."""
    manifest, specs = call.engine.manifest, call.spec.inputs
    if any(spec.kind == "image" for spec in specs):
        return json.dumps({"model": manifest.name, "version": manifest.version})
    labels = [_labels(call, spec)[row] for spec in specs if spec.kind == "label"]
    version = int(call.version) if call.version is not None and call.version.isdecimal() else call.version
    body = GenerateRequest.model_validate(
        {
            "model": manifest.name,
            "version": version,
            "num_images": 1,
            "seed": None if call.seeds is None else call.seeds[row],
            "labels": labels or None,
            "truncation": call.parameters.truncation,
            "part": None if call.module == GENERATOR else call.module,
        }
    )
    return body.model_dump_json(exclude_none=True, exclude={"return_latents"})
