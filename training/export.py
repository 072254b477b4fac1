"""From trained games to a published version: script, check, describe, publish. The only torch.jit.script and save."""

import io
import logging
import math
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

from training.contract import DatasetCard, Manifest, ModuleSpec, Probe, ScoreReference, TensorSpec, TrainConfig, UserError, now
from training.data import evenly
from training.export_onnx import OnnxError, convert
from training.files import digests, versions
from training.files.directories import describe, read_verified, staging, write_atomically
from training.game import Given, Player, Tensors
from training.layers import fold_parametrizations, plain_dropout
from training.probe import PROBE_VALUES, probe_inputs, probe_shape, probe_step

# torch.jit is deprecated upstream, and what the service loads; the manifest can carry other formats beside it
warnings.filterwarnings("ignore", message=r"`torch\.jit\.\w+` is deprecated", category=FutureWarning)

CHECKED_ROWS = 8
TOLERANCE = 1e-5  # between scripted and eager, and between a row's batch-mates: kernels may differ in the last bits
PROBE_TOLERANCE = 1e-3  # at loading: another processor, or a GPU with reduced precision
NUM_QUANTILES = 101
MAX_SCORED = 2000  # images of each kind behind the score reference
NUM_SAMPLES = 64
NUM_COMPARISONS = 16
SAMPLES_FILE = "samples.png"
_log = logging.getLogger(__name__)


class ExportError(UserError):
    """The model must not be published; the message says which check it failed, with the figure."""


@dataclass(frozen=True)
class Provenance:
    """What the manifest says of where a version comes from. `run` names the training run, so that it is published once."""

    run: str
    source: str
    config: TrainConfig
    dataset: DatasetCard
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class HeldOut:
    """Real images (N, C, H, W) in [-1, 1] that were never trained on, and what they give to the served players."""

    images: Tensor
    given: Given = field(default_factory=Given)

    def some(self, count: int) -> "HeldOut":
        """At most so many of the images, evenly spaced."""
        rows = evenly(torch.arange(len(self.images)), count)

        def cut(tensors: Tensors) -> Tensors:
            return {name: values[rows] for name, values in tensors.items()}

        baseline = None if self.given.baseline is None else self.given.baseline[rows]
        return HeldOut(self.images[rows], Given(cut(self.given.inputs), cut(self.given.condition), baseline))


def example_inputs(specs: Sequence[TensorSpec], num_rows: int, seed: int = 0) -> Tensors:
    """Inputs for a module that are the same everywhere: see contract.probe_inputs."""
    return {spec.name: torch.tensor(probe_inputs(spec, num_rows, seed)).reshape(num_rows, *probe_shape(spec)) for spec in specs}


def draw_inputs(specs: Sequence[TensorSpec], seeds: Sequence[int], given: Tensors) -> Tensors:
    """Inputs as the service makes them: one random generator an image draws every latent in declared order.

    Args:
        given: the inputs that are no latents, by name, a row for each seed.
    """
    rows: dict[str, list[Tensor]] = {spec.name: [] for spec in specs if spec.kind == "latent"}
    for seed in seeds:
        random = torch.Generator().manual_seed(seed)
        for spec in specs:
            if spec.kind == "latent":
                normal = spec.distribution == "normal"
                drawn = torch.randn(spec.shape, generator=random) if normal else torch.rand(spec.shape, generator=random) * 2 - 1
                rows[spec.name].append(drawn)
    return {name: torch.stack(values) for name, values in rows.items()} | given


# --- gates --------------------------------------------------------------------------------------------------------------------


def as_served(player: Player) -> nn.Module:
    """A copy of its module, on the CPU in evaluation mode, with plain weights alone."""
    module = deepcopy(player.module).cpu().to(memory_format=torch.contiguous_format).eval().requires_grad_(False)
    fold_parametrizations(module)
    plain_dropout(module)
    return module


def script(name: str, player: Player) -> torch.jit.ScriptModule:
    """The player as TorchScript, on the CPU in evaluation mode, after every gate.

    Raises:
        ExportError: weights or outputs are not finite, scripted differs from eager, a row depends on its batch-mates,
            or the output is not what is declared.
    """
    module = as_served(player)
    check_finite_weights(name, module)
    scripted: torch.jit.ScriptModule = torch.jit.script(module)
    inputs = example_inputs(player.inputs, CHECKED_ROWS)
    with torch.inference_mode():
        check_output(name, player, module(**inputs))
        check_same("scripted output differs from eager", name, module(**inputs), scripted(**inputs))
        # in float64: in float32 large weights make of the last bits, in which kernels differ, more than the tolerance
        check_independent_rows(name, deepcopy(scripted).double(), {key: values.double() for key, values in inputs.items()})
    return scripted


def check_finite_weights(name: str, module: nn.Module) -> None:
    for key, value in module.state_dict().items():
        if not value.isfinite().all():
            raise ExportError(f"{name}: weight {key} has {int((~value.isfinite()).sum())} values that are not finite")


def check_output(name: str, player: Player, output: Tensor) -> None:
    wanted = (CHECKED_ROWS, *player.output.shape)
    fits = len(output.shape) == len(wanted) and all(want in (size, -1) for size, want in zip(output.shape, wanted, strict=True))
    if not fits or output.dtype != torch.float32:
        raise ExportError(f"{name}: output is {output.dtype} {tuple(output.shape)}, and {wanted} of torch.float32 is declared")
    if not output.isfinite().all():
        raise ExportError(f"{name}: {int((~output.isfinite()).sum())} output values are not finite")


def check_same(what: str, name: str, expected: Tensor, actual: Tensor) -> None:
    difference = float((expected - actual).abs().max())
    if not difference <= TOLERANCE * max(1.0, float(expected.abs().max())):
        raise ExportError(f"{name}: {what} by {difference:.3g}; at most {TOLERANCE:g} is allowed")


def check_independent_rows(name: str, module: Callable[..., Tensor], inputs: Tensors) -> None:
    """Each row among others, and alone, must give what it gives in its batch: batch statistics would not, and fail where it is alone."""
    together = module(**inputs)
    others = {key: value.flip(0) * 0.5 for key, value in inputs.items()}
    for row in range(CHECKED_ROWS):
        mixed = module(**{key: torch.cat([others[key], value[row : row + 1]]) for key, value in inputs.items()})
        check_same("the output for one row changes with its batch-mates", name, together[row], mixed[-1])
        alone = module(**{key: value[row : row + 1] for key, value in inputs.items()})
        check_same("the output for one row changes with its batch-mates", name, together[row], alone[0])


# --- describing ---------------------------------------------------------------------------------------------------------------


def write_module(folder: Path, name: str, player: Player, scripted: torch.jit.ScriptModule) -> ModuleSpec:
    """Save `<name>.pt` into the folder and describe it, with a probe made of its own output."""
    buffer = io.BytesIO()
    torch.jit.save(scripted, buffer)
    path = folder / f"{name}.pt"
    path.write_bytes(without_debug_files(buffer))
    return ModuleSpec(
        files={"torchscript": describe(path)}, inputs=player.inputs, output=player.output, probe=make_probe(scripted, player.inputs)
    )


def with_onnx(spec: ModuleSpec, folder: Path, name: str, player: Player) -> ModuleSpec:
    """With `<name>.onnx`, after the same gates. Where that cannot be made, the module is published without, and the log says why:
    a training is not lost for a format that nothing depends on."""
    module, path = as_served(player), folder / f"{name}.onnx"
    inputs = example_inputs(player.inputs, CHECKED_ROWS)
    wide = {each.name: inputs[each.name].repeat(1, 1, 1, 2) if each.shape[-1:] == (-1,) else inputs[each.name] for each in player.inputs}
    try:
        converted = convert(path, module, player, inputs)
        with torch.inference_mode():
            for given in (inputs, wide):
                check_same("ONNX output differs from eager", name, module(**given), converted(**given))
            check_independent_rows(name, converted, inputs)
    except (OnnxError, ExportError) as error:
        path.unlink(missing_ok=True)
        _log.warning("the %s is published without an ONNX file: %s", name, error)
        return spec
    return spec.model_copy(update={"files": spec.files | {"onnx": describe(path)}})


def without_debug_files(archive: io.BytesIO) -> bytes:
    """The same TorchScript file without the entries for tracebacks: they name the folders of the machine that trained."""
    kept = io.BytesIO()
    with zipfile.ZipFile(archive) as given, zipfile.ZipFile(kept, "w", zipfile.ZIP_STORED) as written:
        for entry in given.infolist():
            if not entry.filename.endswith(".debug_pkl"):
                written.writestr(zipfile.ZipInfo(entry.filename), given.read(entry))
    return kept.getvalue()


def make_probe(scripted: torch.jit.ScriptModule, inputs: Sequence[TensorSpec], num_rows: int = CHECKED_ROWS, seed: int = 0) -> Probe:
    with torch.inference_mode():
        values = scripted(**example_inputs(inputs, num_rows, seed)).flatten()
    expected = values[:: probe_step(values.numel())][:PROBE_VALUES]
    return Probe(seed=seed, num_rows=num_rows, expected=tuple(expected.tolist()), tolerance=PROBE_TOLERANCE)


def score_reference(generator: Player, discriminator: Player, held_out: HeldOut) -> ScoreReference:
    """Where scores lie: of held-out real images, and of as many generated ones that are given the same."""
    condition = held_out.given.condition
    real = _in_batches(discriminator.module, {"image": held_out.images} | condition)
    generated = _in_batches(discriminator.module, {"image": generate(generator, held_out, NUM_SAMPLES)} | condition)
    levels = torch.linspace(0, 1, NUM_QUANTILES, dtype=torch.float64)
    return ScoreReference(
        real=tuple(torch.quantile(_mean_scores(real), levels).tolist()),
        generated=tuple(torch.quantile(_mean_scores(generated), levels).tolist()),
        num_real=len(real),
        num_generated=len(generated),
    )


def _mean_scores(scores: Tensor) -> Tensor:
    return scores.flatten(1).mean(1).double() if scores.dim() > 1 else scores.double()


@torch.inference_mode()
def _in_batches(module: nn.Module, inputs: Tensors, rows: int = 64) -> Tensor:
    """A module in evaluation mode over many rows; the result is on the CPU."""
    device = next(module.parameters()).device
    was_training = module.training
    module.eval()
    count = len(next(iter(inputs.values())))
    parts = [
        module(**{key: value[start : start + rows].to(device) for key, value in inputs.items()}).cpu() for start in range(0, count, rows)
    ]
    module.train(was_training)
    return torch.cat(parts)


def save_grid(path: Path, images: Tensor) -> None:
    """A PNG of images (N, C, H, W) in [-1, 1], near square, row by row."""
    count, _, height, width = images.shape
    columns = math.ceil(math.sqrt(count * height / width))
    drawn = io.BytesIO()
    torchvision.utils.save_image(images, drawn, format="png", nrow=columns, normalize=True, value_range=(-1, 1))
    write_atomically(path, drawn.getvalue())


def generate(generator: Player, given: HeldOut, first_seed: int = 0) -> Tensor:
    """One image (C, H, W) for each that is given, with the seeds from `first_seed` on; on the CPU.

    Raises:
        ExportError: they are not finite.
    """
    seeds = range(first_seed, first_seed + len(given.images))
    images = _in_batches(generator.module, draw_inputs(generator.inputs, seeds, given.given.inputs))
    if not images.isfinite().all():
        raise ExportError(f"generator: {int((~images.isfinite()).sum())} sample values are not finite")
    return images


def sheet(generator: Player, examples: HeldOut) -> Tensor:
    """What a grid shows: the images of the examples' seeds; where there is a right answer, baseline, image and answer side by side.

    Raises:
        ExportError: the images are not finite.
    """
    images, baseline = generate(generator, examples), examples.given.baseline
    return images if baseline is None else torch.cat([baseline, images, examples.images], dim=3)[:NUM_COMPARISONS]


# --- publishing ---------------------------------------------------------------------------------------------------------------


def publish(
    players: Mapping[str, Player],
    provenance: Provenance,
    held_out: HeldOut,
    examples: HeldOut,
    repositories: Sequence[Path],
    trusted: Path | None = None,
) -> Manifest:
    """Publish a run's players as the next version of its model; the second time, return what the first time made.

    However many attempts of a run come so far, one that was taken for dead among them, they publish under one number, once.

    Args:
        players: "generator", and "discriminator" where it is served; all others are parts.
        held_out: all are scored, and MAX_SCORED are enough.
        examples: NUM_SAMPLES, for the picture of samples.
        repositories: the first is written to.
        trusted: the folder of digests, into which that of the manifest goes before anybody sees the version.

    Raises:
        ExportError: a gate refused the model, or its version was removed.
    """
    name = provenance.config.model_name
    if (done := published_by(provenance.run, provenance.config, repositories)) is not None:
        return done
    scripted = {key: script(key, player) for key, player in players.items()}
    samples = sheet(players["generator"], examples)
    discriminator = players.get("discriminator")
    reference = score_reference(players["generator"], discriminator, held_out) if discriminator else None
    number = versions.reserve(repositories, name, f"{provenance.run}-{provenance.config.total_images}")
    with staging(repositories[0]) as staged:
        specs = {key: write_module(staged, key, players[key], module) for key, module in scripted.items()}
        if "onnx" in provenance.config.formats:
            specs = {key: with_onnx(spec, staged, key, players[key]) for key, spec in specs.items()}
        save_grid(staged / SAMPLES_FILE, samples)
        manifest = Manifest(
            name=name,
            version=number,
            run=provenance.run,
            architecture=provenance.config.architecture,
            source=provenance.source,
            generator=specs["generator"],
            discriminator=specs.get("discriminator"),
            parts={key: spec for key, spec in specs.items() if key not in ("generator", "discriminator")},
            config=provenance.config,
            dataset=provenance.dataset,
            metrics=dict(provenance.metrics),
            score_reference=reference,
            samples=describe(staged / SAMPLES_FILE),
            created_at=now(),
            torch_version=str(torch.__version__),
        )
        written = manifest.model_dump_json(indent=2).encode() + b"\n"
        (staged / versions.MANIFEST).write_bytes(written)
        if trusted is not None:
            digests.remember(trusted, digests.digest_of(written), f"{name}/{number}", "published")
        return _make_visible(staged, manifest, repositories)


def _make_visible(staged: Path, manifest: Manifest, repositories: Sequence[Path]) -> Manifest:
    """The staged version, or the one that another attempt of the same run has published meanwhile."""
    try:
        versions.publish(staged, repositories, manifest.name, manifest.version)
    except FileExistsError as error:
        if (done := published_by(manifest.run, manifest.config, repositories)) is not None:
            return done
        folder = repositories[0] / manifest.name / str(manifest.version)
        raise ExportError(f"{folder} is this run's, and something else lies there: move it away, and start the run again") from error
    except versions.RemovedError as error:
        raise ExportError(f"{error}: train anew, or to more images") from error
    return manifest


def published_by(run: str, config: TrainConfig, repositories: Sequence[Path]) -> Manifest | None:
    """The version that a run has published already: a worker may die between publishing and saying so.

    A run that was trained on, to more images, publishes once more.
    """
    for folder in versions.versions(repositories[:1], config.model_name).values():
        try:
            manifest = Manifest.model_validate_json((folder / versions.MANIFEST).read_bytes())
        except (OSError, ValueError):
            continue  # a damaged version is the store's to name; it is not this run's
        if (manifest.run, manifest.config.total_images) == (run, config.total_images):
            return manifest
    return None


def published_weights(manifest: Manifest, folder: Path, key: str) -> dict[str, Tensor]:
    """The weights of a published module, after its hash was checked.

    Raises:
        DamagedFileError: the file is not what its manifest says.
        ExportError: the version has no such module.
    """
    spec = manifest.generator if key == "generator" else manifest.discriminator
    if spec is None:
        raise ExportError(f"{manifest.name}/{manifest.version} was published without a {key}")
    weights: dict[str, Tensor] = torch.jit.load(  # type: ignore[no-untyped-call]
        io.BytesIO(read_verified(folder, spec.files["torchscript"])), map_location="cpu"
    ).state_dict()
    return weights
