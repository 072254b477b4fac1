"""Tiny versions of every kind that the service knows, published by one rename: scripted networks, hashes, probes, samples."""

import io
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from training.contract import DatasetCard, FileSpec, Manifest, ModuleSpec, Probe, ScoreReference, TensorSpec, TrainConfig
from training.files import digests, versions
from training.files.directories import describe, staging
from training.probe import probe_inputs, probe_shape

CREATED = "2026-11-22T10:45:00Z"
CLASSES = ("cat", "dog", "fox")
LATENT = TensorSpec(name="latent", kind="latent", shape=(8,), distribution="normal")
LABEL = TensorSpec(name="label", kind="label", shape=(3,), classes=CLASSES)
SCORE = TensorSpec(name="score", kind="logit", shape=())


class Module(NamedTuple):
    """A network, and what its manifest says of it."""

    network: nn.Module
    inputs: tuple[TensorSpec, ...]
    output: TensorSpec


# --- networks -----------------------------------------------------------------------------------------------------------------


class Enlarge(nn.Module):
    """Two convolutions of 3 x 3 and a shuffle: its output depends on 2 input pixels around."""

    def __init__(self, channels: int, scale: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, 8, 3, 1, 1)
        self.second = nn.Conv2d(8, channels * scale * scale, 3, 1, 1)
        self.scale = scale

    def forward(self, image: Tensor) -> Tensor:
        return torch.tanh(nn.functional.pixel_shuffle(self.second(torch.relu(self.first(image))), self.scale))


class Normalise(nn.Module):
    """Depends on all pixels; its input has sides that are even, and comes back in them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(channels, 8, 2, 2)
        self.up = nn.ConvTranspose2d(8, channels, 2, 2)

    def forward(self, image: Tensor) -> Tensor:
        hidden = self.down(image)
        return torch.tanh(self.up(hidden - hidden.mean((2, 3), keepdim=True)))


class Stages(nn.Module):
    """Two images side by side, of which the second is twice the first."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(8, 64)

    def forward(self, latent: Tensor) -> Tensor:
        image = torch.tanh(self.project(latent)).reshape(-1, 1, 8, 8)
        return torch.cat([image * 0.5, image], 3)


class Single(nn.Module):
    """The second of the two, from the same weights."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(8, 64)

    def forward(self, latent: Tensor) -> Tensor:
        return torch.tanh(self.project(latent)).reshape(-1, 1, 8, 8)


class Beside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(8, 64)

    def forward(self, latent: Tensor, image: Tensor) -> Tensor:
        return torch.tanh(self.project(latent).reshape(-1, 1, 8, 8) + image)


class Labelled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.latent = nn.Linear(8, 64)
        self.label = nn.Linear(3, 64)

    def forward(self, latent: Tensor, label: Tensor) -> Tensor:
        return torch.tanh(self.latent(latent) + self.label(label)).reshape(-1, 1, 8, 8)


class LabelJudge(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 64, bias=False)

    def forward(self, image: Tensor, label: Tensor) -> Tensor:
        return (self.embed(label) * image.flatten(1)).sum(1)


class PairJudge(nn.Module):
    """A map of scores, of any size."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.patch = nn.Conv2d(2 * channels, 1, 2, 2)

    def forward(self, image: Tensor, source: Tensor) -> Tensor:
        return self.patch(torch.cat([image, source], 1))


def seeded(make: type[nn.Module], *arguments: int, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make(*arguments)


def picture_spec(channels: int, height: int = -1, width: int = -1, name: str = "image", **rules: int) -> TensorSpec:
    return TensorSpec(name=name, kind="image", shape=(channels, height, width), **rules)


def enlarging(channels: int = 3, scale: int = 2, halo: int = 2) -> Module:
    """Any size; in tiles."""
    return Module(
        seeded(Enlarge, channels, scale), (picture_spec(channels, scale=scale, halo=halo),), picture_spec(channels, name="enlarged")
    )


def normalising(channels: int = 1, size: int = -1) -> Module:
    """Even sides; whole."""
    rules = {"size_multiple": 2} if size == -1 else {}
    spec = picture_spec(channels, size, size, **rules)
    return Module(seeded(Normalise, channels), (spec,), picture_spec(channels, size, size, name="painted"))


def pair_judging(channels: int = 1, size: int = -1) -> Module:
    specs = tuple(picture_spec(channels, size, size, name=name, size_multiple=2) for name in ("image", "source"))
    side = -1 if size == -1 else size // 2
    return Module(seeded(PairJudge, channels), specs, TensorSpec(name="score", kind="logit", shape=(1, side, side)))


def labelled() -> Module:
    return Module(seeded(Labelled), (LATENT, LABEL), picture_spec(1, 8, 8))


def label_judging() -> Module:
    return Module(seeded(LabelJudge), (picture_spec(1, 8, 8), LABEL), SCORE)


def single() -> Module:
    return Module(seeded(Single), (LATENT,), picture_spec(1, 8, 8))


def beside() -> Module:
    return Module(seeded(Beside), (LATENT, picture_spec(1, 8, 8)), picture_spec(1, 8, 8, name="made"))


def stages() -> Module:
    """What may stand in for a generator of one latent."""
    return Module(seeded(Stages), (LATENT,), picture_spec(1, 8, 16))


# --- publishing ---------------------------------------------------------------------------------------------------------------


def publish(
    repository: Path,
    name: str,
    generator: Module,
    *,
    discriminator: Module | None = None,
    parts: Mapping[str, Module] | None = None,
    version: int = 1,
    probe: Probe | None = None,
    size: int = 8,
) -> Manifest:
    """Publish one version and return its manifest.

    Args:
        probe: of the generator, in place of one made of its own output.
        size: of the picture of samples.
    """
    repository.mkdir(parents=True, exist_ok=True)
    with staging(repository) as staged:
        Image.new("L", (size, size), 128).save(staged / "samples.png")
        manifest = Manifest(
            name=name,
            version=version,
            run=f"{name}-{version}",
            architecture="tiny",
            source="none; made for tests",
            generator=write_module(staged, "generator", generator, probe),
            discriminator=None if discriminator is None else write_module(staged, "discriminator", discriminator),
            parts={key: write_module(staged, key, part) for key, part in (parts or {}).items()},
            config=TrainConfig(),
            dataset=dataset_card(generator.output.shape),
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


def write_module(folder: Path, name: str, module: Module, probe: Probe | None = None) -> ModuleSpec:
    scripted = script(module.network)
    path = folder / f"{name}.pt"
    path.write_bytes(module_bytes(scripted))
    probe = probe or make_probe(scripted, module.inputs)
    return ModuleSpec(files={"torchscript": describe(path)}, inputs=module.inputs, output=module.output, probe=probe)


def script(module: nn.Module) -> torch.jit.ScriptModule:
    if isinstance(module, torch.jit.ScriptModule):
        return module
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
    tensors = {spec.name: torch.tensor(probe_inputs(spec, num_rows, 0)).reshape(num_rows, *probe_shape(spec)) for spec in inputs}
    with torch.inference_mode():
        values = module(**tensors).flatten()
    stride = max(1, values.numel() // 64)
    return Probe(seed=0, num_rows=num_rows, expected=tuple(values[::stride][:64].tolist()), tolerance=1e-4)


def dataset_card(shape: tuple[int, ...]) -> DatasetCard:
    nothing = FileSpec(file="images.npy", sha256="0" * 64, size_bytes=0)
    return DatasetCard(
        name="tiny-set",
        num_images=100,
        shape=shape,
        content_sha256="0" * 64,
        source="none; made for tests",
        licence="CC0-1.0",
        files={"images": nothing},
        created_at=CREATED,
    )


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Into a folder of a repository; the state folder beside the repository trusts it."""
    written = manifest.model_dump_json(indent=2).encode()
    (folder / versions.MANIFEST).write_bytes(written)
    digests.remember(trusted_by(folder.parent.parent), digests.digest_of(written), f"{manifest.name}/{manifest.version}", "made for tests")


def trusted_by(repository: Path) -> Path:
    """The folder of digests for a service whose state folder lies beside the repository."""
    return repository.parent / "state" / digests.FOLDER
