"""What a module must show when its version is loaded, before it answers: warm, finite, and the same bits for a row in any company.

Every function here is a generator that yields before each forward pass, so that other versions can serve in between.
"""

import logging
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from app import tiles
from training.contract import ModuleSpec, TensorSpec
from training.probe import probe_shape

_WARM_RUNS = 3  # TorchScript profiles the first run of a shape and compiles in the second
_CORE_PIXELS = 8  # a side, of the tiles that a halo is proved with

_log = logging.getLogger(__name__)
Steps = Generator[None, None, tuple[int, ...]]


class BrokenVersionError(Exception):
    """A version that must not be served; the message says in one sentence which check it failed."""


@dataclass(frozen=True)
class Subject:
    """A module that is to be proved: `forward(inputs, bucket)` gives the rows of a batch that is padded to `bucket` rows."""

    name: str
    spec: ModuleSpec
    device: torch.device
    forward: Callable[[Mapping[str, Tensor], int], Tensor]

    def refuse(self, what: str) -> BrokenVersionError:
        return BrokenVersionError(f"the {self.name}{what}")

    def check_finite(self, output: Tensor) -> None:
        if not output.isfinite().all():
            raise self.refuse(f" gives {int((~output.isfinite()).sum())} values that are not finite")


# --- batches ------------------------------------------------------------------------------------------------------------------


def prove_buckets(subject: Subject, sizes: Sequence[int]) -> Steps:
    """Warm every bucket, then keep those that give each row the bits of the largest.

    Raises:
        BrokenVersionError: in the largest, a row changes with its place or its company.
    """
    largest = sizes[-1]
    random = torch.Generator().manual_seed(0)
    pool = {tensor.name: _example_rows(tensor, tensor.shape, 2 * largest, random).to(subject.device) for tensor in subject.spec.inputs}
    for bucket in _WARM_RUNS * tuple(sizes):
        yield
        subject.forward({name: rows[:bucket] for name, rows in pool.items()}, bucket)
    halves = []
    for half in torch.arange(2 * largest).chunk(2):
        yield
        halves.append(subject.forward(_pick(pool, half), largest))
    reference = torch.cat(halves)
    subject.check_finite(reference)
    kept: list[int] = []
    for bucket in reversed(sizes):
        if (yield from _holds(subject, bucket, pool, reference, random)):
            kept.insert(0, bucket)
        elif bucket == largest:
            raise subject.refuse("'s output for one row changes with its place in the batch or with its batch-mates")
        else:
            _log.info("%s: batches of %d differ from %d in the last bits and are not used", subject.name, bucket, largest)
    return tuple(kept)


def _holds(
    subject: Subject, bucket: int, pool: Mapping[str, Tensor], reference: Tensor, random: torch.Generator
) -> Generator[None, None, bool]:
    for rows in _trials(bucket, len(reference), random):
        yield
        if not _same_bits(subject.forward(_pick(pool, rows), bucket), reference[rows]):
            return False
    return True


def _trials(bucket: int, num_rows: int, random: torch.Generator) -> Iterator[Tensor]:
    """Rows of the pool for one batch each: every place of the bucket with several rows, among others than in the reference; a row that
    is alone, among padding; and at last the reference's own order, which would tell if later runs gave other bits than the first."""
    for _ in range(max(2, num_rows // 2 // bucket)):
        yield torch.randperm(num_rows, generator=random)[:bucket]
    yield torch.tensor([bucket - 1])
    yield torch.arange(bucket)


def _pick(pool: Mapping[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
    return {name: values[rows] for name, values in pool.items()}


def _same_bits(given: Tensor, wanted: Tensor) -> bool:
    return torch.equal(given.contiguous().view(torch.int32), wanted.contiguous().view(torch.int32))


# --- pictures of any size -----------------------------------------------------------------------------------------------------


def prove_alone(subject: Subject) -> Steps:
    """A module that runs in batches of one gives the same bits again, after others; pictures that it makes of pictures have the size
    that is declared; and where its input may be tiled, tiles give what the whole gives.

    Raises:
        BrokenVersionError: any of that fails.
    """
    random = torch.Generator().manual_seed(0)
    pool = {tensor.name: _example_rows(tensor, probe_shape(tensor), 2, random).to(subject.device) for tensor in subject.spec.inputs}
    outputs = []
    for row in (0, 1, 0):
        yield
        outputs.append(subject.forward({name: rows[row : row + 1] for name, rows in pool.items()}, 1))
        subject.check_finite(outputs[-1])
    if not _same_bits(outputs[0], outputs[2]):
        raise subject.refuse("'s output for one row changes with what ran before")
    [first, *others] = subject.spec.inputs
    if not others and subject.spec.output.kind == "image" and -1 in first.shape:
        yield from _prove_sizes(subject, first, random)
        if first.halo is not None:
            yield from _prove_halo(subject, first, first.halo, random)
    return (1,)


def _prove_sizes(subject: Subject, spec: TensorSpec, random: torch.Generator) -> Generator[None, None, None]:
    multiple = spec.size_multiple
    for height, width in ((multiple, multiple), (multiple, 2 * multiple)):  # the smallest, and one that is not square
        image = _example_rows(spec, sized(spec, height, width), 1, random)
        _, _, tall, wide = image.shape
        yield
        made = subject.forward({spec.name: image.to(subject.device)}, 1)
        wanted = (tall * spec.scale, wide * spec.scale)
        if tuple(made.shape[2:]) != wanted:
            raise subject.refuse(f" makes {tuple(made.shape[2:])} of a picture of {(tall, wide)}, and its manifest declares {wanted}")


def _prove_halo(subject: Subject, spec: TensorSpec, halo: int, random: torch.Generator) -> Generator[None, None, None]:
    """The first and the last of several tiles along each axis, against the whole."""
    core, around = tiles.rounded(_CORE_PIXELS, spec), tiles.rounded(halo, spec)
    length = 2 * core + around
    for height, width in ((length, core), (core, length)):
        image = _example_rows(spec, sized(spec, height, width), 1, random).to(subject.device)
        yield
        whole = subject.forward({spec.name: image}, 1)
        plan = [tiles.Tile(rows, columns) for rows in tiles.spans(height, core, around) for columns in tiles.spans(width, core, around)]
        for tile in (plan[0], plan[-1]):
            yield
            made = tile.core(subject.forward({spec.name: tile.cut(image)}, 1), spec.scale)
            apart = float((made - tile.place(whole, spec.scale)).abs().max())
            if not apart <= subject.spec.probe.tolerance:
                raise subject.refuse(f"'s output changes by {apart:.3g} with pixels beyond its halo of {halo}")


def sized(spec: TensorSpec, height: int, width: int) -> tuple[int, ...]:
    """The shape of an image where its free axes have these lengths."""
    channels, *axes = spec.shape
    return (channels, *(given if declared == -1 else declared for declared, given in zip(axes, (height, width), strict=True)))


# --- examples -----------------------------------------------------------------------------------------------------------------


def _example_rows(tensor: TensorSpec, shape: tuple[int, ...], count: int, random: torch.Generator) -> Tensor:
    """Rows of the kind that requests bring: (count, *shape) float32."""
    if tensor.kind == "latent" and tensor.distribution == "normal":
        return torch.randn((count, *shape), generator=random)
    uniform = torch.rand((count, *shape), generator=random)
    return uniform / uniform.sum(1, keepdim=True) if tensor.kind == "label" else 2 * uniform - 1
