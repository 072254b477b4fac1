"""What a model of the protocol takes and gives, out of its manifest, and whether a request fits that."""

from collections.abc import Mapping, Sequence

from app import pictures
from app.engine import served_modules
from app.errors import Invalid, UnknownModel, did_you_mean, show
from app.pictures import Upload
from app.protocol.documents import RequestedOutput, TensorMetadata
from app.protocol.tensors import Tensor
from training.contract import Manifest, ModuleSpec, TensorSpec

SEED, PNG = "seed", "png"
GENERATOR = "generator"


def modules_of(manifest: Manifest) -> dict[str, ModuleSpec]:
    """The modules that can be asked. Parts of what takes pictures are left out, as they are of /transform."""
    drawn = all(spec.kind != "image" for spec in manifest.generator.inputs)
    return {name: spec for name, spec in served_modules(manifest).items() if drawn or name not in manifest.parts}


def name_of(model: str, module: str) -> str:
    """The name in the protocol."""
    return model if module == GENERATOR else f"{model}:{module}"


def split(name: str) -> tuple[str, str]:
    """Model and module of a name in the protocol."""
    model, colon, module = name.partition(":")
    return model, module if colon else GENERATOR


def find(manifest: Manifest, module: str) -> ModuleSpec:
    """Raises UnknownModel, which names the modules that there are."""
    modules = modules_of(manifest)
    if module in modules:
        return modules[module]
    known = [name_of(manifest.name, name) for name in modules]
    given = name_of(manifest.name, module)
    version = f"{manifest.name} version {manifest.version}"
    raise UnknownModel(f"there is no model {show(given)}; of {version} there are: {', '.join(known)}{did_you_mean(given, known)}")


def inputs_of(module: ModuleSpec) -> list[TensorMetadata]:
    """Those that are declared, and `seed`, which can take the place of every latent."""
    inputs = [_metadata(spec) for spec in module.inputs]
    return inputs + ([TensorMetadata(name=SEED, datatype="INT64", shape=[-1])] if latents_of(module) else [])


def outputs_of(module: ModuleSpec) -> list[TensorMetadata]:
    """Pixels, and `png`, the same as files; or a score a row."""
    if module.output.kind != "image":
        return [TensorMetadata(name=module.output.name, datatype="FP32", shape=[-1])]
    return [_metadata(module.output), TensorMetadata(name=PNG, datatype="BYTES", shape=[-1])]


def latents_of(module: ModuleSpec) -> list[str]:
    """The names of its latents."""
    return [spec.name for spec in module.inputs if spec.kind == "latent"]


def _metadata(spec: TensorSpec) -> TensorMetadata:
    if spec.kind == "image":  # pixels, since they alone are the same in every batch, and as numpy and its friends hold pictures
        channels, height, width = spec.shape
        return TensorMetadata(name=spec.name, datatype="UINT8", shape=[-1, height, width, channels])
    return TensorMetadata(name=spec.name, datatype="FP32", shape=[-1, *spec.shape])


# --- a request ----------------------------------------------------------------------------------------------------------------


def wanted(module: ModuleSpec, outputs: Sequence[RequestedOutput]) -> list[RequestedOutput]:
    """The outputs that are asked for; where none is named, the declared one alone, since PNG files cost as much again and are its like.

    Raises:
        Invalid: one that the model does not give, or one twice.
    """
    known = [output.name for output in outputs_of(module)]
    names = [output.name for output in outputs]
    for name in names:
        if name not in known:
            raise Invalid(f"outputs: the model gives no {show(name)}; it gives {', '.join(known)}{did_you_mean(name, known)}")
    if len(set(names)) < len(names):
        raise Invalid(f"outputs: {', '.join(names)} names one twice; name each once")
    return list(outputs) or [RequestedOutput(name=module.output.name)]


def check(module: ModuleSpec, tensors: Mapping[str, Tensor]) -> int:
    """That the inputs are those of the model.

    Returns:
        The number of rows.

    Raises:
        Invalid: an input that is missing, unknown, of another datatype or shape, or of other rows than the first one.
        ImageTooLarge: pictures of too many pixels.
    """
    known = {metadata.name: metadata for metadata in inputs_of(module)}
    for tensor in tensors.values():
        if tensor.name not in known:
            raise tensor.wrong(f"the model takes no such input; it takes {', '.join(known)}{did_you_mean(tensor.name, list(known))}")
        _check_shape(tensor, known[tensor.name])
    _check_complete(module, tensors)
    first, *others = tensors.values()
    for tensor in others:
        if len(tensor.values) != len(first.values):
            raise tensor.wrong(f"it has {len(tensor.values)} rows, and {first.name} has {len(first.values)}; each row is one of all inputs")
    for spec in module.inputs:
        if spec.kind == "image" and tensors[spec.name].datatype == "UINT8":
            _check_pictures(spec, tensors[spec.name])
    return len(first.values)


def _check_shape(tensor: Tensor, metadata: TensorMetadata) -> None:
    shape = list(tensor.values.shape)
    if tensor.datatype == "BYTES" and metadata.datatype == "UINT8":
        return  # picture files in place of pixels
    if tensor.datatype != metadata.datatype:
        files = ", or BYTES of picture files," if metadata.datatype == "UINT8" else ""
        raise tensor.wrong(f"it is {tensor.datatype}; {metadata.datatype}{files} of shape {metadata.shape} is allowed")
    if len(shape) != len(metadata.shape) or any(want not in (-1, size) for size, want in zip(shape, metadata.shape, strict=True)):
        raise tensor.wrong(f"its shape is {shape}; {metadata.shape} is allowed, where -1 is any size and the first axis is the rows")


def _check_complete(module: ModuleSpec, tensors: Mapping[str, Tensor]) -> None:
    latents = latents_of(module)
    if SEED in tensors and (both := [name for name in latents if name in tensors]):
        raise tensors[SEED].wrong(f"a seed takes the place of {', '.join(both)}; give one of the two")
    missing = [spec.name for spec in module.inputs if spec.name not in tensors and not (SEED in tensors and spec.name in latents)]
    if missing:
        instead = f"; {SEED} can take the place of {', '.join(latents)}" if set(missing) & set(latents) else ""
        raise Invalid(f"inputs: {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing{instead}")


def _check_pictures(spec: TensorSpec, tensor: Tensor) -> None:
    num, height, width, _ = tensor.values.shape
    upload = Upload(tensor.name, tensor.pointer, b"")
    pictures.check_size(upload, spec, height, width)
    if -1 in spec.shape and num * height * width > (limit := pictures.max_pixels(spec)):
        raise tensor.wrong(f"{num} pictures of {width} x {height} are too many pixels for one request; {limit:,} are allowed")
