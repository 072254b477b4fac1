"""Inputs that are the same on every machine and in every version of every library, by which a module is known again. Imports no torch."""

import math
from statistics import NormalDist

from training.contract import TensorSpec

PROBE_VALUES = 64
PROBE_SIZE = 32  # pixels a side of a probe's image where its size is free


def probe_step(num_values: int) -> int:
    """Of a flattened output, every so many-th value is kept as a probe's `expected`, 64 at most."""
    return max(1, num_values // PROBE_VALUES)


def probe_shape(spec: TensorSpec) -> tuple[int, ...]:
    """The shape of one row of a probe: as declared, and a free axis is the first multiple of `size_multiple` from PROBE_SIZE on."""
    free = -(-PROBE_SIZE // spec.size_multiple) * spec.size_multiple
    return tuple(free if size == -1 else size for size in spec.shape)


def probe_inputs(spec: TensorSpec, num_rows: int, seed: int) -> list[float]:
    """Values for one input of a module, the same on every machine and in every version of every library.

    Returns:
        num_rows * prod(probe_shape(spec)) floats in row-major order: standard normal or uniform [-1, 1] for latents, uniform [-1, 1] for
        images, weights that sum to 1 for labels.
    """
    golden = (math.sqrt(5) - 1) / 2  # its multiples, modulo 1, fill the unit interval evenly
    size = num_rows * math.prod(probe_shape(spec))
    uniform = [((index + 1 + seed) * golden) % 1.0 for index in range(size)]
    if spec.kind == "label":
        width = spec.shape[0]
        rows = [uniform[start : start + width] for start in range(0, size, width)]
        return [weight / sum(row) for row in rows for weight in row]
    if spec.kind == "latent" and spec.distribution == "normal":
        normal = NormalDist()
        return [normal.inv_cdf(min(max(value, 1e-9), 1 - 1e-9)) for value in uniform]
    return [2 * value - 1 for value in uniform]
