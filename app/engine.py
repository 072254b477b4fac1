"""One loaded version: verified, replayed, warmed, and proved to give a row the same bits in any company. The only torch.jit.load.

Kernels are chosen by the shape of a batch, and two kernels may differ in the last bit. So a module runs in few padded batch sizes
(buckets), and only in those that are proved, when the version is loaded, to give every row the bits that the largest one gives.
"""

import logging
import warnings
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import torch
from torch import Tensor

from app import pixels
from training.contract import PROBE_VALUES, FileSpec, Manifest, ModuleSpec, TensorSpec, probe_inputs, probe_step
from training.files.directories import DamagedFileError, verify

# torch.jit is deprecated upstream, and what versions are published as; a manifest can name other formats beside it
warnings.filterwarnings("ignore", message=r"`torch\.jit\.\w+` is deprecated", category=FutureWarning)

ModuleName = Literal["generator", "discriminator"]

BUCKETS = (4, 8, 16, 32, 64)  # 1 and 2 differ from the rest with every kernel library, and are never run
MAX_ROWS = BUCKETS[-1]
_WARM_RUNS = 3  # TorchScript profiles the first run of a shape and compiles in the second
# what torch raises for a file or a manifest that does not hold what it should
_TORCH_ERRORS = (RuntimeError, torch.jit.Error, OSError, ValueError, TypeError, LookupError, AttributeError)

_log = logging.getLogger(__name__)


class BrokenVersionError(Exception):
    """A version that must not be served; the message says in one sentence which check it failed."""


@dataclass(frozen=True)
class _Player:
    """A module on its device, with what its manifest says of it."""

    name: ModuleName
    module: torch.jit.ScriptModule
    spec: ModuleSpec
    device: torch.device

    def forward(self, inputs: Mapping[str, Tensor], bucket: int) -> Tensor:
        """Rows 0 to N of a batch of `bucket` rows, on the device: the output as declared, a discriminator's averaged to (N,).

        Args:
            inputs: (N, *shape) each, 1 <= N <= bucket.
        """
        with torch.inference_mode():
            output: Tensor = self.module(**{name: _pad(rows, bucket, self.device) for name, rows in inputs.items()})
            if self.name == "discriminator":
                output = output.reshape(bucket, -1).mean(1)  # before the cut: its bits may depend on the shape too
            return output[: num_rows(inputs)]


class Engine:
    """A version that can be run. Not safe for several threads, and its bits are proved for the thread that loaded it."""

    def __init__(self, manifest: Manifest, device: torch.device, players: Mapping[ModuleName, tuple[_Player, tuple[int, ...]]]) -> None:
        self.manifest = manifest
        self.device = device
        self._players = players

    @classmethod
    def load(cls, folder: Path, manifest: Manifest, device: torch.device) -> Self:
        """Verify, load, replay, warm and prove a version; every file is hashed before any is opened.

        Raises:
            BrokenVersionError: any of that failed.
        """
        steps = cls.loading(folder, manifest, device)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                engine: Self = end.value
                return engine

    @classmethod
    def loading(cls, folder: Path, manifest: Manifest, device: torch.device) -> Generator[None, None, Self]:
        """`load` in steps of at most one forward pass, so that other versions can serve in between; all on one thread."""
        specs: dict[ModuleName, ModuleSpec] = {"generator": manifest.generator}
        if manifest.discriminator is not None:
            specs["discriminator"] = manifest.discriminator
        paths = _verified(folder, manifest, specs)
        _use_exact_kernels(device)
        players: dict[ModuleName, tuple[_Player, tuple[int, ...]]] = {}
        for name, spec in specs.items():
            try:
                player = _load_player(name, spec, paths[name], device)
                yield
                _replay(player)
                players[name] = (player, (yield from _proved_buckets(player)))
            except _TORCH_ERRORS as error:
                raise BrokenVersionError(f"the {name} does not run: {_last_line(error)}") from error
        return cls(manifest, device, players)

    @property
    def buckets(self) -> dict[ModuleName, tuple[int, ...]]:
        """The batch sizes that each module runs in, ascending."""
        return {name: buckets for name, (_, buckets) in self._players.items()}

    def run(self, module: ModuleName, inputs: Mapping[str, Tensor]) -> Tensor:
        """One forward pass.

        Args:
            inputs: every declared input, (N, *shape) float32 each, 1 <= N <= 64, on any device.

        Returns:
            On the CPU: uint8 (N, C, H, W) of a generator, float32 (N,) of a discriminator. Row i depends on row i of the inputs alone,
            to the bit.
        """
        player, buckets = self._players[module]
        bucket = next(size for size in buckets if size >= num_rows(inputs))
        with torch.inference_mode():
            output = player.forward(inputs, bucket)
            return (pixels.to_uint8(output) if module == "generator" else output).cpu()


def _use_exact_kernels(device: torch.device) -> None:
    """On a GPU: no reduced precision in secret, and kernels that give the same bits each time."""
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False


def num_rows(inputs: Mapping[str, Tensor]) -> int:
    """Rows of a batch: of its first tensor, the others have as many."""
    return len(next(iter(inputs.values())))


def _pad(rows: Tensor, bucket: int, device: torch.device) -> Tensor:
    """A fresh tensor, so that its alignment is always the same, filled up with copies of the first row: values of the kind it knows."""
    padded = torch.empty((bucket, *rows.shape[1:]), dtype=torch.float32, device=device)
    padded[: len(rows)] = rows
    padded[len(rows) :] = rows[:1]
    return padded


# --- loading ------------------------------------------------------------------------------------------------------------------


def _verified(folder: Path, manifest: Manifest, specs: Mapping[ModuleName, ModuleSpec]) -> dict[ModuleName, Path]:
    files: dict[str, FileSpec] = {"samples": manifest.samples}
    for name, spec in specs.items():
        if "torchscript" not in spec.files:
            raise BrokenVersionError(f"manifest.json names no TorchScript file of the {name}")
        files |= {name if form == "torchscript" else f"{name}.{form}": file for form, file in spec.files.items()}
    try:
        paths = {key: verify(folder, file) for key, file in files.items()}
    except DamagedFileError as error:
        raise BrokenVersionError(str(error)) from error
    except OSError as error:
        raise BrokenVersionError(f"a file cannot be read: {error.strerror}") from error
    return {name: paths[name] for name in specs}


def _load_player(name: ModuleName, spec: ModuleSpec, path: Path, device: torch.device) -> _Player:
    module: torch.jit.ScriptModule = torch.jit.load(path, map_location=device).eval()  # type: ignore[no-untyped-call]
    _check_arguments(name, module, spec)
    return _Player(name, module, spec, device)


def _check_arguments(name: ModuleName, module: torch.jit.ScriptModule, spec: ModuleSpec) -> None:
    arguments = [argument.name for argument in module.forward.schema.arguments[1:]]  # type: ignore[attr-defined]
    declared = [tensor.name for tensor in spec.inputs]
    if arguments != declared:
        raise BrokenVersionError(f"the {name} takes ({', '.join(arguments)}), and its manifest declares ({', '.join(declared)})")


def _replay(player: _Player) -> None:
    """Compare with the values that the version had when it was published."""
    probe, spec = player.spec.probe, player.spec
    if not 1 <= probe.num_rows <= MAX_ROWS:
        raise BrokenVersionError(f"the {player.name}'s probe has {probe.num_rows} rows; 1 to {MAX_ROWS} are allowed")
    rows = {
        tensor.name: _pad(
            torch.tensor(probe_inputs(tensor, probe.num_rows, probe.seed)).reshape(-1, *tensor.shape), MAX_ROWS, player.device
        )
        for tensor in spec.inputs
    }
    with torch.inference_mode():
        output = player.module(**rows)
    wanted = (MAX_ROWS, *spec.output.shape)
    if not isinstance(output, Tensor) or output.dtype != torch.float32 or not _fits(tuple(output.shape), wanted):
        given = f"{output.dtype} {tuple(output.shape[1:])}" if isinstance(output, Tensor) else type(output).__name__
        raise BrokenVersionError(f"the {player.name} gives {given} a row, and its manifest declares torch.float32 {spec.output.shape}")
    _check_finite(player.name, output)
    values = output[: probe.num_rows].flatten().cpu()
    _compare(player.name, values[:: probe_step(values.numel())][:PROBE_VALUES].tolist(), probe.expected, probe.tolerance)


def _fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return len(shape) == len(wanted) and all(want in (size, -1) for size, want in zip(shape, wanted, strict=True))


def _check_finite(name: ModuleName, output: Tensor) -> None:
    if not output.isfinite().all():
        raise BrokenVersionError(f"the {name} gives {int((~output.isfinite()).sum())} values that are not finite")


def _compare(name: ModuleName, values: Sequence[float], expected: Sequence[float], tolerance: float) -> None:
    if len(values) != len(expected):
        raise BrokenVersionError(f"the {name}'s probe holds {len(expected)} values, and its output gives {len(values)}")
    apart = [abs(value - wanted) / max(1.0, abs(wanted)) for value, wanted in zip(values, expected, strict=True)]
    worst = max(range(len(values)), key=apart.__getitem__)
    if not apart[worst] <= tolerance:
        raise BrokenVersionError(
            f"the {name}'s probe gives {values[worst]:.6g} where {expected[worst]:.6g} was published, more than {tolerance:g} apart"
        )


def _last_line(error: BaseException) -> str:
    """What a TorchScript traceback says at its end, as part of a sentence."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


# --- proving ------------------------------------------------------------------------------------------------------------------


def _proved_buckets(player: _Player) -> Generator[None, None, tuple[int, ...]]:
    """Warm every bucket, then keep those that give each row the bits of the largest.

    Raises:
        BrokenVersionError: in the largest, a row changes with its place or its company.
    """
    random = torch.Generator().manual_seed(0)
    pool = {tensor.name: _example_rows(tensor, 2 * MAX_ROWS, random).to(player.device) for tensor in player.spec.inputs}
    for bucket in _WARM_RUNS * BUCKETS:
        yield
        player.forward({name: rows[:bucket] for name, rows in pool.items()}, bucket)
    halves = []
    for half in torch.arange(2 * MAX_ROWS).chunk(2):
        yield
        halves.append(player.forward(_pick(pool, half), MAX_ROWS))
    reference = torch.cat(halves)
    _check_finite(player.name, reference)
    kept: list[int] = []
    for bucket in reversed(BUCKETS):
        if (yield from _holds(player, bucket, pool, reference, random)):
            kept.insert(0, bucket)
        elif bucket == MAX_ROWS:
            raise BrokenVersionError(f"the {player.name}'s output for one row changes with its place in the batch or with its batch-mates")
        else:
            _log.info("%s: batches of %d differ from %d in the last bits and are not used", player.name, bucket, MAX_ROWS)
    return tuple(kept)


def _holds(
    player: _Player, bucket: int, pool: Mapping[str, Tensor], reference: Tensor, random: torch.Generator
) -> Generator[None, None, bool]:
    for rows in _trials(bucket, random):
        yield
        if not _same_bits(player.forward(_pick(pool, rows), bucket), reference[rows]):
            return False
    return True


def _trials(bucket: int, random: torch.Generator) -> Iterator[Tensor]:
    """Rows of the pool for one batch each: every place of the bucket with several rows, among others than in the reference; a row that
    is alone, among padding; and at last the reference's own order, which would tell if later runs gave other bits than the first."""
    for _ in range(max(2, MAX_ROWS // bucket)):
        yield torch.randperm(2 * MAX_ROWS, generator=random)[:bucket]
    yield torch.tensor([bucket - 1])
    yield torch.arange(bucket)


def _pick(pool: Mapping[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
    return {name: values[rows] for name, values in pool.items()}


def _same_bits(given: Tensor, wanted: Tensor) -> bool:
    return torch.equal(given.contiguous().view(torch.int32), wanted.contiguous().view(torch.int32))


def _example_rows(tensor: TensorSpec, count: int, random: torch.Generator) -> Tensor:
    """Rows of the kind that requests bring: (count, *shape) float32."""
    if tensor.kind == "latent" and tensor.distribution == "normal":
        return torch.randn((count, *tensor.shape), generator=random)
    uniform = torch.rand((count, *tensor.shape), generator=random)
    return uniform / uniform.sum(1, keepdim=True) if tensor.kind == "label" else 2 * uniform - 1
