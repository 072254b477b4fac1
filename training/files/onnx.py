"""An ONNX file, as it is run wherever it is run: by whoever publishes it, to see that it gives the same, and by the service."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Session:
    """An open file.

    inputs: their names, in order.
    run: arrays by name to the one output.
    """

    inputs: tuple[str, ...]
    run: Callable[[Mapping[str, NDArray[np.float32]]], NDArray[np.float32]]


def open_session(model: Path | bytes, num_threads: int) -> Session:
    """Open a file, or the bytes of one, on the CPU; needs the extra `onnx`. The same number of threads gives the same bits.

    Raises:
        RuntimeError: ONNX Runtime refuses it; `run` raises the same where it fails.
    """
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as errors

    # its own kinds are no RuntimeErrors, and have nothing in common
    failures = tuple(kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.use_deterministic_compute = True
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # a thread that spins takes a core from others
    options.log_severity_level = 3  # what it warns of is how it was exported
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except failures as error:
        raise RuntimeError(str(error)) from error

    def run(inputs: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32]:
        try:
            [output] = session.run(None, dict(inputs))
        except failures as error:
            raise RuntimeError(str(error)) from error
        result: NDArray[np.float32] = output
        return result

    return Session(tuple(each.name for each in session.get_inputs()), run)
