"""How a module is run: as it was published, or in another way that a user chose, by its name. The service's only torch.jit.

| name | what runs |
|---|---|
| torchscript | the published file, as it is |
| torchscript-frozen | the same file, its weights made constants, its layers folded together and handed to oneDNN where that can take them |
| torchscript-channels-last | the same file, its convolutions with the channels innermost |
| torchscript-cuda-graphs | the same file, each batch size recorded once and replayed as one launch; on an NVIDIA GPU |
| torchscript-float16, torchscript-bfloat16 | the same, computed in half the bits; on an NVIDIA GPU |
| onnxruntime | the ONNX file beside it, where the manifest names one; on a CPU, with the extra `onnx` |

Each gives other last bits, and each must show the same before it answers: see app/engine.py.
"""

import io
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor

from app.choices import Backend
from training.contract import Format
from training.files.onnx import open_session

# torch.jit is deprecated upstream, and what versions are published as; a manifest can name other formats beside it
warnings.filterwarnings("ignore", message=r"`torch\.jit\.\w+` is deprecated", category=FutureWarning)

HALVES: Mapping[Backend, torch.dtype] = {"torchscript-float16": torch.float16, "torchscript-bfloat16": torch.bfloat16}
ON_CUDA: frozenset[Backend] = frozenset({"torchscript-cuda-graphs", *HALVES})
HALF_TOLERANCE = 16  # machine epsilons that a half's output may be off, after the roundings of many layers
# what is raised for a file or a manifest that does not hold what it should
ERRORS = (RuntimeError, torch.jit.Error, OSError, ValueError, TypeError, LookupError, AttributeError)


@dataclass(frozen=True)
class Runner:
    """A module that can be run.

    forward: (N, *shape) float32 tensors on the device, by name, to its output there, contiguous.
    arguments: the names that it takes, in order.
    small_batches: sizes below the engine's buckets whose rows may have the bits of larger ones.
    tolerance: how far it may be off the published values, where that is more than its probe allows.
    """

    forward: Callable[[dict[str, Tensor]], Tensor]
    arguments: tuple[str, ...]
    small_batches: tuple[int, ...] = ()
    tolerance: float = 0.0


def format_of(backend: Backend) -> Format:
    """The file that it runs."""
    return "onnx" if backend == "onnxruntime" else "torchscript"


def refusal(backend: Backend, device: torch.device) -> str:
    """Why nothing can be run so here; empty where it can."""
    if backend in ON_CUDA and device.type != "cuda":
        return f"{backend} is for NVIDIA GPUs, and the device is {device}"
    if backend == "onnxruntime" and device.type != "cpu":
        return f"{backend} runs on the CPU, and the device is {device}"
    if backend == "onnxruntime" and find_spec("onnxruntime") is None:
        return f"{backend} needs a package that is not installed: pip install 'ganserve[onnx]'"
    return ""


def load(backend: Backend, data: bytes, device: torch.device, *, any_size: bool) -> Runner:
    """Open a module from the bytes of a file of the back end's format, whose hash was checked.

    Args:
        any_size: pictures of many sizes come one by one, so that nothing is to be compiled for the sizes that came first.

    Raises:
        ERRORS: it cannot be run so.
    """
    return _onnx(data) if backend == "onnxruntime" else _torchscript(backend, data, device, any_size=any_size)


def _torchscript(backend: Backend, data: bytes, device: torch.device, *, any_size: bool) -> Runner:
    module: torch.jit.ScriptModule = torch.jit.load(io.BytesIO(data), map_location=device).eval()  # type: ignore[no-untyped-call]
    arguments = tuple(argument.name for argument in module.forward.schema.arguments[1:])  # type: ignore[attr-defined]
    if backend == "torchscript-frozen":
        module = torch.jit.optimize_for_inference(torch.jit.freeze(module))
    elif backend == "torchscript-channels-last":
        module = module.to(memory_format=torch.channels_last)
    half = HALVES.get(backend)
    if half is not None:
        module = module.to(half)

    def forward(inputs: dict[str, Tensor]) -> Tensor:
        if half is not None:
            inputs = {name: rows.to(half) for name, rows in inputs.items()}
        with torch.jit.optimized_execution(not any_size):  # type: ignore[attr-defined]
            output: Tensor = module(**inputs)
        if not isinstance(output, Tensor):
            return output  # for whoever checks what it gives
        return (output if half is None else output.float()).contiguous()

    if backend in ON_CUDA and device.type == "cuda" and not any_size:
        forward = _Graphs(forward)
    return Runner(forward, arguments, tolerance=0.0 if half is None else HALF_TOLERANCE * torch.finfo(half).eps)


class _Graphs:
    """A forward pass on a GPU, recorded once a batch size: a replay is one launch, where the pass has several a layer.

    Source: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
    """

    WARM_RUNS = 3  # TorchScript profiles the first and compiles in the second; neither can be recorded

    def __init__(self, forward: Callable[[dict[str, Tensor]], Tensor]) -> None:
        self._forward = forward
        self._recorded: dict[int, tuple[torch.cuda.CUDAGraph, dict[str, Tensor], Tensor]] = {}  # by rows; the engine has few sizes

    def __call__(self, inputs: dict[str, Tensor]) -> Tensor:
        rows = len(next(iter(inputs.values())))
        if rows not in self._recorded:
            self._recorded[rows] = self._record(inputs)
        graph, places, output = self._recorded[rows]
        for name, place in places.items():
            place.copy_(inputs[name])
        graph.replay()
        return output.clone()  # the next replay writes into the same place

    def _record(self, inputs: dict[str, Tensor]) -> tuple[torch.cuda.CUDAGraph, dict[str, Tensor], Tensor]:
        places = {name: rows.clone() for name, rows in inputs.items()}
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(self.WARM_RUNS):
                self._forward(places)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = self._forward(places)
        return graph, places, output


def _onnx(data: bytes) -> Runner:
    """With as many threads as torch has on this one."""
    session = open_session(data, torch.get_num_threads())

    def forward(inputs: dict[str, Tensor]) -> Tensor:
        return torch.from_numpy(session.run({name: rows.numpy() for name, rows in inputs.items()}))

    return Runner(forward, session.inputs, small_batches=(1, 2))
