"""Tiny versions that are real: scripted networks, hashes, probes, samples, published by one rename."""

import io
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Literal

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from training.contract import DatasetCard, FileSpec, Manifest, ModuleSpec, Probe, ScoreReference, TensorSpec, TrainConfig, probe_inputs
from training.files import versions
from training.files.directories import describe, staging

CREATED = "2026-11-22T10:45:00Z"
LATENT = 8
Network = Literal["linear", "conv"]


class LinearGenerator(nn.Module):
    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.shape = (channels, size, size)
        self.project = nn.Linear(LATENT, channels * size * size)

    def forward(self, latent: Tensor) -> Tensor:
        return torch.tanh(self.project(latent)).reshape(-1, self.shape[0], self.shape[1], self.shape[2])


class ConvGenerator(nn.Module):
    """Transposed convolution and batch norm, whose running statistics are not those of any batch."""

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.half = size // 2
        self.project = nn.Linear(LATENT, 16 * self.half * self.half)
        self.norm = nn.BatchNorm2d(16)
        self.up = nn.ConvTranspose2d(16, channels, 4, 2, 1)
        nn.init.uniform_(self.norm.running_mean, -0.5, 0.5)
        nn.init.uniform_(self.norm.running_var, 0.5, 2.0)

    def forward(self, latent: Tensor) -> Tensor:
        hidden = self.project(latent).reshape(-1, 16, self.half, self.half)
        return torch.tanh(self.up(torch.relu(self.norm(hidden))))


class LabelledGenerator(nn.Module):
    def __init__(self, channels: int, size: int, num_classes: int) -> None:
        super().__init__()
        self.linear = LinearGenerator(channels, size)
        self.embed = nn.Linear(num_classes, LATENT, bias=False)

    def forward(self, latent: Tensor, label: Tensor) -> Tensor:
        return self.linear(latent + self.embed(label))


class LinearDiscriminator(nn.Module):
    """One logit an image: (N,)."""

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(channels * size * size, 16)
        self.score = nn.Linear(16, 1)

    def forward(self, image: Tensor) -> Tensor:
        return self.score(torch.nn.functional.leaky_relu(self.hidden(image.flatten(1)), 0.2)).squeeze(1)


class PatchDiscriminator(nn.Module):
    """A map of logits: (N, 1, size / 2, size / 2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.patch = nn.Conv2d(channels, 1, 4, 2, 1)

    def forward(self, image: Tensor) -> Tensor:
        return self.patch(image)


@cache
def scripted(network: str, channels: int, size: int, seed: int, num_classes: int = 0) -> torch.jit.ScriptModule:
    makers: Mapping[str, Callable[[], nn.Module]] = {
        "generator.linear": lambda: LinearGenerator(channels, size),
        "generator.conv": lambda: ConvGenerator(channels, size),
        "generator.labelled": lambda: LabelledGenerator(channels, size, num_classes),
        "discriminator.linear": lambda: LinearDiscriminator(channels, size),
        "discriminator.conv": lambda: PatchDiscriminator(channels),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return script(makers[network]())


def script(module: nn.Module) -> torch.jit.ScriptModule:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return torch.jit.script(module.eval())


def module_bytes(module: torch.jit.ScriptModule) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.jit.save(module, buffer)
    return buffer.getvalue()


def make_probe(module: torch.jit.ScriptModule, inputs: tuple[TensorSpec, ...], num_rows: int = 4) -> Probe:
    tensors = {spec.name: torch.tensor(probe_inputs(spec, num_rows, 0)).reshape(num_rows, *spec.shape) for spec in inputs}
    with torch.inference_mode():
        values = module(**tensors).flatten()
    stride = max(1, values.numel() // 64)
    return Probe(seed=0, num_rows=num_rows, expected=tuple(values[::stride][:64].tolist()), tolerance=1e-4)


def write_module(
    folder: Path,
    name: str,
    module: torch.jit.ScriptModule,
    inputs: tuple[TensorSpec, ...],
    output: TensorSpec,
    probe: Probe | None = None,
) -> ModuleSpec:
    path = folder / f"{name}.pt"
    path.write_bytes(module_bytes(module))
    return ModuleSpec(files={"torchscript": describe(path)}, inputs=inputs, output=output, probe=probe or make_probe(module, inputs))


def publish_version(
    repository: Path,
    name: str,
    *,
    version: int = 1,
    channels: int = 1,
    size: int = 8,
    seed: int = 0,
    network: Network = "linear",
    classes: tuple[str, ...] | None = None,
    critic: bool = False,
    with_discriminator: bool = True,
    generator: nn.Module | None = None,
    discriminator: nn.Module | None = None,
    probe: Probe | None = None,
) -> Manifest:
    """Publish one tiny version and return its manifest.

    Args:
        network: linear layers, or convolutions with batch norm; the discriminator gives one score, or a map of them.
        classes: a generator that takes labels too.
        generator, discriminator: a module in place of the tiny one, however wrong; declared as the tiny one is.
        probe: of the generator, in place of one made of its own output.
    """
    image = TensorSpec(name="image", kind="image", shape=(channels, size, size))
    inputs = [TensorSpec(name="latent", kind="latent", shape=(LATENT,), distribution="normal")]
    if classes is not None:
        inputs.append(TensorSpec(name="label", kind="label", shape=(len(classes),), classes=classes))
    score_shape = (1, size // 2, size // 2) if network == "conv" else ()
    score = TensorSpec(name="score", kind="critic" if critic else "logit", shape=score_shape)
    kind = "generator.labelled" if classes else f"generator.{network}"
    made = script(generator) if generator else scripted(kind, channels, size, seed, len(classes or ()))
    judge = script(discriminator) if discriminator else scripted(f"discriminator.{network}", channels, size, seed)
    repository.mkdir(parents=True, exist_ok=True)
    with staging(repository) as staged:
        Image.new("L", (size, size), 128).save(staged / "samples.png")
        manifest = Manifest(
            name=name,
            version=version,
            run=f"{name}-{version}",
            architecture="tiny",
            source="none; made for tests",
            generator=write_module(staged, "generator", made, tuple(inputs), image, probe),
            discriminator=write_module(staged, "discriminator", judge, (image,), score) if with_discriminator else None,
            config=TrainConfig(),
            dataset=dataset_card(channels, size),
            metrics={},
            score_reference=ScoreReference(
                real=tuple(i / 50 for i in range(101)), generated=tuple(i / 50 - 1.5 for i in range(101)), num_real=100, num_generated=100
            ),
            samples=describe(staged / "samples.png"),
            created_at=CREATED,
            torch_version=str(torch.__version__),
        )
        write_manifest(staged, manifest)
        versions.publish(staged, [repository], name, version)
    return manifest


def dataset_card(channels: int, size: int) -> DatasetCard:
    nothing = FileSpec(file="images.npy", sha256="0" * 64, size_bytes=0)
    return DatasetCard(
        name="tiny-set",
        num_images=100,
        shape=(channels, size, size),
        content_sha256="0" * 64,
        source="none; made for tests",
        licence="CC0-1.0",
        files={"images": nothing},
        created_at=CREATED,
    )


def write_manifest(folder: Path, manifest: Manifest) -> None:
    (folder / versions.MANIFEST).write_text(manifest.model_dump_json(indent=2), encoding="utf-8")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """An empty model repository."""
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


@pytest.fixture(scope="session")
def make_version() -> Callable[..., Manifest]:
    """`make_version(repository, name, *, version=1, ...)`: see publish_version."""
    return publish_version


@pytest.fixture(scope="session")
def rewrite_manifest() -> Callable[[Path, Manifest], None]:
    """`rewrite_manifest(version_folder, manifest)`: what an honest publisher would never do."""
    return write_manifest
