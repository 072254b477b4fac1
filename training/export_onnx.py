"""A module as an ONNX file, which other runtimes run. Needs the extra `onnx`."""

import logging
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from training.contract import UserError
from training.files.onnx import open_session
from training.game import Player, Tensors

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
for package in ("onnxscript", "onnx_ir"):  # they tell of each node
    logging.getLogger(package).setLevel(logging.WARNING)


class OnnxError(UserError):
    """No ONNX file can be made of a module; the message says why."""


def refusal() -> str:
    """Why none can be made here; empty where it can."""
    missing = [package for package in PACKAGES if find_spec(package) is None]
    return f"onnx needs packages that are not installed ({', '.join(missing)}): pip install 'ganserve[onnx]'" if missing else ""


def convert(path: Path, module: nn.Module, player: Player, example: Tensors) -> Callable[..., Tensor]:
    """Write the file, with free batch and image axes.

    Args:
        module: the player's as it is served, on the CPU.
        example: inputs of several rows, in declared order.

    Returns:
        What runs the file: tensors by name to the output.

    Raises:
        OnnxError: torch or ONNX Runtime cannot do that.
    """
    free = torch.export.Dim.DYNAMIC
    axes = {spec.name: {0: free} | {axis: free for axis, size in enumerate(spec.shape, 1) if size == -1} for spec in player.inputs}
    # an output may be called as an input is; the file's names are each given once
    output = player.output.name if player.output.name not in example else "output"
    try:
        program = torch.onnx.export(
            module, kwargs=example, input_names=list(example), output_names=[output], dynamic_shapes=axes, dynamo=True, verbose=False
        )
    except torch.onnx.OnnxExporterError as error:
        raise OnnxError(f"torch cannot export it to ONNX: {str(error).strip().splitlines()[0]}") from error
    assert program is not None, "it was not given a file's name"
    _forget_sources(program.model)
    program.save(path)
    return _runtime(path)


def _forget_sources(model: Any) -> None:  # noqa: ANN401 - onnx_ir's, which only the extra brings
    """Tracebacks in it name the folders of the machine that trained."""
    values = (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values())
    nodes = list(model.graph.all_nodes())
    for thing in (model, model.graph, *values, *nodes, *(output for node in nodes for output in node.outputs)):
        thing.metadata_props.clear()


def _runtime(path: Path) -> Callable[..., Tensor]:
    try:
        session = open_session(path, torch.get_num_threads())
    except RuntimeError as error:
        raise OnnxError(f"ONNX Runtime refuses it: {error}") from error

    def run(**inputs: Tensor) -> Tensor:
        try:
            return torch.from_numpy(session.run({name: rows.numpy() for name, rows in inputs.items()}))
        except RuntimeError as error:
            raise OnnxError(f"ONNX Runtime fails at it: {error}") from error

    return run
