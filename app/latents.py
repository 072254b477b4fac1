"""Seeds become latents, one random generator an image; and the paths between latents."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from training.contract import TensorSpec

_SAME_LINE = 1e-6  # sine below which two float32 vectors lie on one line: their directions are rounded to about 1e-7


def draw(specs: Sequence[TensorSpec], seeds: Sequence[int]) -> dict[str, Tensor]:
    """Random values of every latent input, by its name; inputs of other kinds are passed over.

    Row i depends on `seeds[i]` and on the specs alone, to the bit: one CPU generator a seed draws the latents in the order of `specs`.

    Returns:
        (len(seeds), *shape) float32 each, on the CPU; standard normal, or uniform over [-1, 1].

    Raises:
        ValueError: a latent that declares no distribution.
    """
    latents = [spec for spec in specs if spec.kind == "latent"]
    values = {spec.name: torch.empty(len(seeds), *spec.shape, dtype=torch.float32) for spec in latents}
    generator = torch.Generator()
    for row, seed in enumerate(seeds):
        generator.manual_seed(seed)  # as a new one: nothing of the row before is left
        for spec in latents:
            _fill(values[spec.name][row], spec, generator)
    return values


def _fill(values: Tensor, spec: TensorSpec, generator: torch.Generator) -> None:
    if spec.distribution == "normal":
        values.normal_(generator=generator)
    elif spec.distribution == "uniform":
        values.uniform_(-1, 1, generator=generator)
    else:
        raise ValueError(f"the latent {spec.name!r} declares no distribution")


def truncate(latents: Mapping[str, Tensor], truncation: float) -> dict[str, Tensor]:
    """Scale latents towards the mean of their distribution, which is 0: `truncation` 1 changes no bit, 0 leaves the mean alone."""
    return {name: values * truncation for name, values in latents.items()}


def lerp(start: Tensor, end: Tensor, t: float) -> Tensor:
    """The straight line between two float32 tensors of one shape, t in [0, 1]; computed in float64. The ends are exact to the bit."""
    return _at(start, end, t, "lerp")


def slerp(start: Tensor, end: Tensor, t: float) -> Tensor:
    """The arc between two float32 tensors of one shape, each taken as one flat vector, t in [0, 1]; computed in float64.

    The direction moves along the great circle at constant speed (Shoemake 1985, "Animating rotation with quaternion curves", section
    3.3); the norm, which is 1 there, is interpolated linearly. The ends are exact to the bit. Where the plane of the circle is not
    given by the two vectors:
    - parallel vectors, or one of norm 0: the straight line, which is the same path;
    - opposite vectors: half a circle through the axis that is most nearly orthogonal to them (the first one where several are), so the
      norm does not collapse; there and back take the same way. One number has no such axis and takes the straight line.
    """
    return _at(start, end, t, "slerp")


def path(anchors: Tensor, steps: int, method: Literal["slerp", "lerp"]) -> Tensor:
    """A walk through all anchors, evenly spaced between neighbours.

    Args:
        anchors: (K, *shape) float32, K >= 1.
        steps: frames between two neighbours, >= 0; the anchors come beside them.

    Returns:
        ((K - 1) * (steps + 1) + 1, *shape) float32. Anchor k is row k * (steps + 1), exact to the bit.
    """
    times = torch.arange(1, steps + 1, dtype=torch.float64, device=anchors.device) / (steps + 1)
    parts = [anchors[:1]]
    for start, end in pairwise(anchors):
        parts += [_between(start, end, times, method), end.unsqueeze(0)]
    return torch.cat(parts)


def _at(start: Tensor, end: Tensor, t: float, method: Literal["slerp", "lerp"]) -> Tensor:
    if t in (0, 1):
        return (end if t else start).clone()
    return _between(start, end, torch.tensor([t], dtype=torch.float64, device=start.device), method)[0]


def _between(start: Tensor, end: Tensor, times: Tensor, method: Literal["slerp", "lerp"]) -> Tensor:
    """(T, *shape) in the dtype of `start`, at `times` (T,) float64 strictly between 0 and 1."""
    a, b = start.double().flatten(), end.double().flatten()
    t = times.unsqueeze(1)  # (T, 1)
    points = _line(a, b, t) if method == "lerp" else _arc(a, b, t)
    return points.to(start.dtype).reshape(-1, *start.shape)


def _line(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    return a + t * (b - a)


def _arc(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    norm_a, norm_b = a.norm(), b.norm()
    if norm_a == 0 or norm_b == 0:
        return _line(a, b, t)
    u, v = a / norm_a, b / norm_b
    cosine = float(u @ v)
    sine = float((v - cosine * u).norm())
    if sine > _SAME_LINE:
        angle = math.atan2(sine, cosine)
        direction = (((1 - t) * angle).sin() * u + (t * angle).sin() * v) / sine
    elif cosine > 0 or a.numel() == 1:
        return _line(a, b, t)
    else:
        direction = (t * math.pi).cos() * u + (t * math.pi).sin() * _orthogonal(u)
    points: Tensor = direction * _line(norm_a, norm_b, t)
    return points


def _orthogonal(u: Tensor) -> Tensor:
    """A unit vector orthogonal to the unit vector u; the same one for u and -u."""
    nearest = int(u.abs().argmin())
    axis = torch.zeros_like(u)
    axis[nearest] = 1
    return torch.nn.functional.normalize(axis - u[nearest] * u, dim=0)
