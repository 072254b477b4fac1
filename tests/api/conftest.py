"""Tiny versions that are real, in ways that a test chooses."""

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Literal

import pytest
import tiny_versions
import torch
from tiny_versions import Module, script, write_manifest
from torch import Tensor, nn

from training.contract import Manifest, Probe, TensorSpec

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
    return tiny_versions.publish(
        repository,
        name,
        Module(made, tuple(inputs), image),
        discriminator=Module(judge, (image,), score) if with_discriminator else None,
        version=version,
        probe=probe,
        size=size,
    )


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
