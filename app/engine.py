"""One loaded version: verified, replayed, warmed, and proved to give a row the same bits in any company.

Kernels are chosen by the shape of a batch, and two kernels may differ in the last bit. So a module runs in few padded batch sizes
(buckets), and only in those that are proved, when the version is loaded, to give every row the bits that the largest one gives.

What makes a picture of a picture, or takes pictures of any size, runs alone, in batches of one: such pictures come one by one, two of
them seldom have one size, and each size would have to be proved by itself.
"""

import logging
import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from app import backends, pixels, tiles
from app.choices import DEFAULT, Backend, Choice, as_published
from app.proving import BrokenVersionError, Subject, prove_alone, prove_buckets
from training.contract import Manifest, ModuleSpec, TensorSpec
from training.files.directories import DamagedFileError, read_verified, verify
from training.probe import PROBE_VALUES, probe_inputs, probe_shape, probe_step

ModuleName = str  # generator, discriminator, or a part's

BUCKETS = (4, 8, 16, 32, 64)  # torch's kernels for 1 and 2 differ from the rest, and are never run
ALONE = (1,)
MAX_ROWS = BUCKETS[-1]
MAX_BATCH_PIXELS = MAX_ROWS * 32 * 32  # larger images run in smaller batches: a batch is a turn, and others wait for its end
TURN_SECONDS = 0.03  # of a batch with rows of a large request, while others may come
RUNS_TO_KNOW = 3  # of a size, before the shortest of them is believed
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Player:
    """A module on its device, with what its manifest says of it."""

    name: ModuleName
    backend: Backend
    runner: backends.Runner
    spec: ModuleSpec
    device: torch.device

    @property
    def subject(self) -> Subject:
        return Subject(self.name, self.spec, self.device, self.forward)

    @property
    def makes_images(self) -> bool:
        return self.spec.output.kind == "image"

    @property
    def bucket_sizes(self) -> tuple[int, ...]:
        """The batch sizes that are tried."""
        if _runs_alone(self.spec):
            return ALONE
        images = [tensor for tensor in (*self.spec.inputs, self.spec.output) if tensor.kind == "image"]
        num_pixels = max((math.prod(tensor.shape[1:]) for tensor in images), default=1)
        largest = tuple(size for size in BUCKETS if size * num_pixels <= MAX_BATCH_PIXELS) or BUCKETS[:1]
        return self.runner.small_batches + largest

    def forward(self, inputs: Mapping[str, Tensor], bucket: int) -> Tensor:
        """Rows 0 to N of a batch of `bucket` rows, on the device: images as they come, scores averaged to (N,).

        Args:
            inputs: (N, *shape) each, 1 <= N <= bucket.
        """
        with torch.inference_mode():
            output = self.runner.forward({name: _pad(rows, bucket, self.device) for name, rows in inputs.items()})
            if not self.makes_images:
                output = output.reshape(bucket, -1).mean(1)  # before the cut: its bits may depend on the shape too
            return output[: num_rows(inputs)]


class Engine:
    """A version that can be run. Not safe for several threads, and its bits are proved for the thread that loaded it."""

    def __init__(self, manifest: Manifest, device: torch.device, players: Mapping[ModuleName, tuple[_Player, tuple[int, ...]]]) -> None:
        self.manifest = manifest
        self.device = device
        self._players = players
        self._taken: dict[tuple[ModuleName, int], tuple[int, float]] = {}  # by batch size: runs, and the seconds of the shortest

    @classmethod
    def load(cls, folder: Path, manifest: Manifest, device: torch.device, choose: Callable[[ModuleName], Choice] = as_published) -> Self:
        """Verify, load, replay, warm and prove a version; every file is hashed before any is opened, and what is opened
        are bytes that were hashed.

        Args:
            choose: how a module is to be run, if it shows in that way what it must, and else is run as it was published.

        Raises:
            BrokenVersionError: any of that failed.
        """
        steps = cls.loading(folder, manifest, device, choose)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                engine: Self = end.value
                return engine

    @classmethod
    def loading(
        cls, folder: Path, manifest: Manifest, device: torch.device, choose: Callable[[ModuleName], Choice] = as_published
    ) -> Generator[None, None, Self]:
        """`load` in steps of at most one forward pass, so that other versions can serve in between; all on one thread."""
        _verify(folder, manifest)
        _use_exact_kernels(device)
        players: dict[ModuleName, tuple[_Player, tuple[int, ...]]] = {}
        for name in served_modules(manifest):
            players[name] = yield from _as_chosen(name, manifest, folder, device, choose(name))
        return cls(manifest, device, players)

    @property
    def buckets(self) -> dict[ModuleName, tuple[int, ...]]:
        """The batch sizes that each module runs in, ascending."""
        return {name: buckets for name, (_, buckets) in self._players.items()}

    @property
    def backends(self) -> dict[ModuleName, Backend]:
        """How each module is run."""
        return {name: player.backend for name, (player, _) in self._players.items()}

    def inputs(self, module: ModuleName) -> tuple[TensorSpec, ...]:
        """What a module takes, in call order."""
        return self._players[module][0].spec.inputs

    def max_rows(self, module: ModuleName) -> int:
        """Rows of its largest batch."""
        return self._players[module][1][-1]

    def turn_rows(self, module: ModuleName) -> int:
        """Rows of its largest batch that is not known to take longer than a turn may; of its smallest, where all do."""
        sizes = self._players[module][1]
        short = [size for size in sizes if self._seconds(module, size) <= TURN_SECONDS]
        return short[-1] if short else sizes[0]

    def _seconds(self, module: ModuleName, size: int) -> float:
        runs, seconds = self._taken.get((module, size), (0, 0.0))
        return seconds if runs >= RUNS_TO_KNOW else 0.0

    def run(self, module: ModuleName, inputs: Mapping[str, Tensor]) -> Tensor:
        """One forward pass.

        Args:
            inputs: every declared input, (N, *shape) float32 each, 1 <= N <= `max_rows`, on any device.

        Returns:
            On the CPU: uint8 (N, C, H, W) of what makes images, float32 (N,) of a discriminator. Row i depends on row i of the inputs
            alone, to the bit.
        """
        player, buckets = self._players[module]
        bucket = next(size for size in buckets if size >= num_rows(inputs))
        begin = time.perf_counter()
        with torch.inference_mode():
            output = player.forward(inputs, bucket)
            output = _to_cpu(pixels.to_uint8(output) if player.makes_images else output)
        runs, seconds = self._taken.get((module, bucket), (0, math.inf))
        self._taken[module, bucket] = runs + 1, min(seconds, time.perf_counter() - begin)
        return output

    def transforming(self, image: pixels.Pixels) -> Generator[None, None, Tensor]:
        """What the generator makes of a picture, its only input, tile by tile: a step a tile, as many as `tiles.plan` has.

        Args:
            image: uint8 (C, H, W), of a size that the input takes.

        Returns:
            uint8 (C, H * scale, W * scale) on the CPU.
        """
        [spec] = self.manifest.generator.inputs
        whole = torch.from_numpy(image)
        plan = tiles.plan(spec, *whole.shape[1:])
        for index, tile in enumerate(plan):
            if index:
                yield
            made = self.run("generator", {spec.name: pixels.from_uint8(tile.cut(whole).numpy()).unsqueeze(0)})[0]
            if len(plan) == 1:
                return made
            if not index:
                result = made.new_empty((len(made), whole.shape[1] * spec.scale, whole.shape[2] * spec.scale))
            tile.place(result, spec.scale).copy_(tile.core(made, spec.scale))
        return result


def served_modules(manifest: Manifest) -> dict[ModuleName, ModuleSpec]:
    """What a version is asked for: its generator, its discriminator, and the parts that can take the generator's place."""
    modules: dict[ModuleName, ModuleSpec] = {"generator": manifest.generator}
    if manifest.discriminator is not None:
        modules["discriminator"] = manifest.discriminator
    inputs = manifest.generator.inputs
    return modules | {name: part for name, part in manifest.parts.items() if part.inputs == inputs and part.output.kind == "image"}


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
    """A fresh tensor, so that its alignment is always the same, filled up with copies of the first row: values of the kind it knows. A GPU
    fetches it from pinned memory while this thread goes on."""
    padded = torch.empty((bucket, *rows.shape[1:]), dtype=torch.float32, pin_memory=device.type == "cuda")
    padded[: len(rows)] = rows
    padded[len(rows) :] = rows[:1]
    return padded.to(device, non_blocking=True)


def _to_cpu(output: Tensor) -> Tensor:
    """From a GPU into pinned memory, which it writes to by itself."""
    if output.device.type != "cuda":
        return output.cpu()
    pinned = torch.empty_like(output, device="cpu", pin_memory=True)
    pinned.copy_(output, non_blocking=True)
    torch.cuda.current_stream(output.device).synchronize()
    return pinned


# --- loading ------------------------------------------------------------------------------------------------------------------


def _verify(folder: Path, manifest: Manifest) -> None:
    """Hash the files of each module; those that are not served are hashed too, since they can be fetched."""
    if taken := {"generator", "discriminator"} & set(manifest.parts):
        raise BrokenVersionError(f"manifest.json calls a part {min(taken)}, which is no name for a part")
    specs = served_modules(manifest) | manifest.parts
    for name, spec in specs.items():
        if "torchscript" not in spec.files:
            raise BrokenVersionError(f"manifest.json names no TorchScript file of the {name}")
    try:
        verify(folder, manifest.samples)
        for spec in specs.values():
            for file in spec.files.values():
                verify(folder, file)
    except DamagedFileError as error:
        raise BrokenVersionError(str(error)) from error
    except OSError as error:
        raise BrokenVersionError(f"a file cannot be read: {error.strerror}") from error


Loaded = Generator[None, None, tuple[_Player, tuple[int, ...]]]


def _as_chosen(name: ModuleName, manifest: Manifest, folder: Path, device: torch.device, choice: Choice) -> Loaded:
    """A module as it was chosen to be run, if there is such a file of it and it shows there what it must; else as usual."""
    spec = served_modules(manifest)[name]
    if choice.backend != DEFAULT and backends.format_of(choice.backend) in spec.files:
        try:
            player, proved = yield from _shown(name, choice.backend, spec, folder, device)
        except BrokenVersionError as error:
            _log.warning("%s version %d: by %s, %s; it is run by %s", manifest.name, manifest.version, choice.backend, error, DEFAULT)
            player, proved = yield from _shown(name, DEFAULT, spec, folder, device)
    else:
        player, proved = yield from _shown(name, DEFAULT, spec, folder, device)
    # after the proof: which sizes agree with each other must not depend on it
    return player, tuple(size for size in proved if size <= (choice.max_rows or size)) or proved[:1]


def _shown(name: ModuleName, backend: Backend, spec: ModuleSpec, folder: Path, device: torch.device) -> Loaded:
    """Load, replay, warm and prove one module; and the batch sizes that were proved.

    Raises:
        BrokenVersionError: any of that failed.
    """
    try:
        file = spec.files[backends.format_of(backend)]
        runner = backends.load(backend, read_verified(folder, file), device, any_size=_runs_alone(spec))
        _check_arguments(name, runner.arguments, spec)
        probe = spec.probe.model_copy(update={"tolerance": max(spec.probe.tolerance, runner.tolerance)})
        player = _Player(name, backend, runner, spec.model_copy(update={"probe": probe}), device)
        yield
        _replay(player)
        return player, (yield from _proved(player))
    except DamagedFileError as error:  # replaced since all were hashed
        raise BrokenVersionError(str(error)) from error
    except backends.ERRORS as error:
        raise BrokenVersionError(f"the {name} does not run: {_last_line(error)}") from error


def _runs_alone(spec: ModuleSpec) -> bool:
    """Whether it makes pictures of pictures, or takes them in any size."""
    images = [tensor for tensor in (*spec.inputs, spec.output) if tensor.kind == "image"]
    takes_images = any(tensor.kind == "image" for tensor in spec.inputs)
    return (takes_images and spec.output.kind == "image") or any(-1 in tensor.shape for tensor in images)


def _check_arguments(name: ModuleName, arguments: Sequence[str], spec: ModuleSpec) -> None:
    declared = [tensor.name for tensor in spec.inputs]
    if list(arguments) != declared:
        raise BrokenVersionError(f"the {name} takes ({', '.join(arguments)}), and its manifest declares ({', '.join(declared)})")


def _replay(player: _Player) -> None:
    """Compare with the values that the version had when it was published."""
    probe, spec = player.spec.probe, player.spec
    if not 1 <= probe.num_rows <= MAX_ROWS:
        raise BrokenVersionError(f"the {player.name}'s probe has {probe.num_rows} rows; 1 to {MAX_ROWS} are allowed")
    size = max(probe.num_rows, player.bucket_sizes[-1])
    rows = {
        tensor.name: _pad(
            torch.tensor(probe_inputs(tensor, probe.num_rows, probe.seed)).reshape(-1, *probe_shape(tensor)), size, player.device
        )
        for tensor in spec.inputs
    }
    with torch.inference_mode():
        output = player.runner.forward(rows)
    wanted = (size, *spec.output.shape)
    if not isinstance(output, Tensor) or output.dtype != torch.float32 or not _fits(tuple(output.shape), wanted):
        given = f"{output.dtype} {tuple(output.shape[1:])}" if isinstance(output, Tensor) else type(output).__name__
        raise BrokenVersionError(f"the {player.name} gives {given} a row, and its manifest declares torch.float32 {spec.output.shape}")
    player.subject.check_finite(output)
    values = output[: probe.num_rows].flatten().cpu()
    _compare(player.name, values[:: probe_step(values.numel())][:PROBE_VALUES].tolist(), probe.expected, probe.tolerance)


def _proved(player: _Player) -> Generator[None, None, tuple[int, ...]]:
    sizes = player.bucket_sizes
    return (yield from (prove_alone(player.subject) if sizes == ALONE else prove_buckets(player.subject, sizes)))


def _fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return len(shape) == len(wanted) and all(want in (size, -1) for size, want in zip(shape, wanted, strict=True))


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
