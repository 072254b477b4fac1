"""Each way to run a module shows what every engine shows, and what cannot be run as it was chosen is run as it was published."""

import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import get_args

import pytest
import torch
from api_client import serving
from tiny_versions import enlarging, publish, trusted_by, write_manifest
from torch import Tensor, nn

from app import backends, choices
from app.choices import Backend, Choice, Choices
from app.engine import Engine
from app.proving import BrokenVersionError
from app.settings import Settings, SettingsError
from training.contract import Manifest
from training.export import with_onnx
from training.files.directories import describe
from training.game import Player

CPU = torch.device("cpu")
MakeVersion = Callable[..., Manifest]


def with_onnx_files(folder: Path, manifest: Manifest, generator: nn.Module) -> Manifest:
    """The version with an ONNX file of its generator, as a training that was asked for it would have published it."""
    spec = manifest.generator
    spec = with_onnx(spec, folder, "generator", Player(generator, spec.inputs, spec.output))
    changed = manifest.model_copy(update={"generator": spec})
    write_manifest(folder, changed)
    return changed


class Convolutions(nn.Module):
    """What a generator is made of: layers that the back ends fold together, lay out otherwise, and hand to other libraries."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(8, 4 * 16)
        self.norm = nn.BatchNorm2d(4)
        self.up = nn.ConvTranspose2d(4, 1, 4, 2, 1)

    def forward(self, latent: Tensor) -> Tensor:
        hidden = torch.relu(self.norm(self.project(latent).reshape(-1, 4, 4, 4)))
        return torch.tanh(self.up(hidden))


@cache
def convolutions() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Convolutions().eval()


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory, make_version: MakeVersion) -> tuple[Path, Manifest]:
    """A tiny version whose generator has an ONNX file, and its discriminator none."""
    repository = tmp_path_factory.mktemp("backends") / "models"
    manifest = make_version(repository, "tiny", generator=convolutions())
    folder = repository / "tiny/1"
    return folder, with_onnx_files(folder, manifest, convolutions())


def loaded(version: tuple[Path, Manifest], choice: Choice) -> Engine:
    return Engine.load(*version, CPU, lambda _module: choice)


@pytest.mark.parametrize("backend", get_args(Backend))
def test_each_back_end_gives_the_same_images_and_a_row_the_same_bits_in_any_company(
    version: tuple[Path, Manifest], backend: Backend
) -> None:
    engine = loaded(version, Choice(backend=backend))  # what is for GPUs computes the same here, and records nothing
    assert engine.backends["generator"] == backend
    latents = torch.randn(64, 8, generator=torch.Generator().manual_seed(3))
    together = engine.run("generator", {"latent": latents})
    published = Engine.load(*version, CPU).run("generator", {"latent": latents})
    assert (together.int() - published.int()).abs().max() <= (16 if backend in backends.HALVES else 1)
    assert together.is_contiguous()
    for count in engine.buckets["generator"]:
        assert torch.equal(engine.run("generator", {"latent": latents[:count]}), together[:count])


def test_onnxruntime_runs_one_image_as_one(version: tuple[Path, Manifest]) -> None:
    """Its kernels give the bits of larger batches there, which torch's do not."""
    assert loaded(version, Choice(backend="onnxruntime")).buckets["generator"][0] == 1
    assert loaded(version, Choice()).buckets["generator"][0] >= 4


def test_a_module_without_the_file_that_a_back_end_runs_is_run_as_it_was_published(version: tuple[Path, Manifest]) -> None:
    engine = loaded(version, Choice(backend="onnxruntime"))
    assert engine.backends == {"generator": "onnxruntime", "discriminator": "torchscript"}


def test_larger_batches_than_were_chosen_are_not_run_and_no_bit_depends_on_that(version: tuple[Path, Manifest]) -> None:
    whole, cut = loaded(version, Choice()), loaded(version, Choice(max_rows=16))
    assert cut.buckets["generator"] == tuple(size for size in whole.buckets["generator"] if size <= 16)
    latents = torch.randn(16, 8)
    assert torch.equal(whole.run("generator", {"latent": latents}), cut.run("generator", {"latent": latents}))
    assert loaded(version, Choice(max_rows=1)).buckets["generator"] == whole.buckets["generator"][:1], "one size is always left"


def test_what_does_not_show_the_same_is_run_as_it_was_published_and_told(
    version: tuple[Path, Manifest], make_version: MakeVersion, repository: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manifest, folder = make_version(repository, "tiny"), repository / "tiny/1"
    shutil.copy(version[0] / "generator.onnx", folder)  # of other weights
    files = manifest.generator.files | {"onnx": describe(folder / "generator.onnx")}
    manifest = manifest.model_copy(update={"generator": manifest.generator.model_copy(update={"files": files})})
    with caplog.at_level(logging.WARNING):
        engine = Engine.load(folder, manifest, CPU, lambda _module: Choice(backend="onnxruntime"))
    assert engine.backends["generator"] == "torchscript"
    assert "tiny version 1: by onnxruntime, the generator's probe gives" in caplog.text

    (folder / "generator.onnx").write_bytes(b"nothing that can be run")
    files = manifest.generator.files | {"onnx": describe(folder / "generator.onnx")}
    unreadable = manifest.model_copy(update={"generator": manifest.generator.model_copy(update={"files": files})})
    with caplog.at_level(logging.WARNING):
        Engine.load(folder, unreadable, CPU, lambda _module: Choice(backend="onnxruntime"))
    assert "tiny version 1: by onnxruntime, the generator does not run" in caplog.text
    with pytest.raises(BrokenVersionError, match=r"generator\.onnx"):  # it is not what its manifest says
        Engine.load(folder, manifest, CPU)


def test_pictures_of_any_size_are_made_by_onnxruntime_too(repository: Path) -> None:
    """In tiles, as the manifest's halo lets them; the halo is proved again for each back end."""
    manifest, folder = publish(repository, "tiny", enlarging()), repository / "tiny/1"
    manifest = with_onnx_files(folder, manifest, enlarging().network)
    engine = Engine.load(folder, manifest, CPU, lambda _module: Choice(backend="onnxruntime"))
    assert engine.backends == {"generator": "onnxruntime"}
    image = torch.rand(1, 3, 5, 9) * 2 - 1
    usual = Engine.load(folder, manifest, CPU).run("generator", {"image": image})
    assert usual.shape == (1, 3, 10, 18)
    assert (engine.run("generator", {"image": image}).int() - usual.int()).abs().max() <= 1


def test_a_device_that_a_back_end_cannot_use_is_refused() -> None:
    assert backends.refusal("torchscript-float16", CPU) == "torchscript-float16 is for NVIDIA GPUs, and the device is cpu"
    assert backends.refusal("torchscript-cuda-graphs", torch.device("cuda", 1)) == ""
    assert backends.refusal("onnxruntime", torch.device("cuda")) == "onnxruntime runs on the CPU, and the device is cuda"
    assert backends.refusal("torchscript", torch.device("cuda")) == ""
    assert backends.refusal("onnxruntime", CPU) == ""


# --- what a server runs -------------------------------------------------------------------------------------------------------


def test_a_server_runs_what_was_chosen_and_says_so(version: tuple[Path, Manifest], tmp_path: Path) -> None:
    repository = shutil.copytree(version[0].parent.parent, tmp_path / "models")
    state = shutil.copytree(trusted_by(version[0].parent.parent).parent, tmp_path / "state")
    settings = Settings(models=(repository,), state=state, run_jobs=False)
    question = {"model": "tiny", "seed": 1, "num_images": 3}

    def asked(settings: Settings) -> tuple[object, bytes]:
        with serving(settings) as api:
            [card] = api.get("/models").json()["models"]
            return card["backends"], api.post("/generate", question).content

    published = {"generator": "torchscript", "discriminator": "torchscript"}
    assert asked(settings)[0] == published
    choices.write(state, Choices(models={"tiny": {"generator": Choice(backend="onnxruntime")}}))
    first, second = asked(settings), asked(settings)
    assert first[0] == published | {"generator": "onnxruntime"}
    assert first == second, "as long as nothing else is chosen, no byte changes"
    with pytest.raises(SettingsError, match="--backend: torchscript-bfloat16 is for NVIDIA GPUs, and the device is cpu; or choose another"):
        asked(replace(settings, backend="torchscript-bfloat16"))
    assert asked(replace(settings, backend="torchscript-frozen"))[0] == dict.fromkeys(published, "torchscript-frozen")


def test_a_choice_that_cannot_be_read_is_no_start(tmp_path: Path) -> None:
    (tmp_path / "serving.json").write_text('{"threads": 0}')
    with pytest.raises(SettingsError, match=r"serving\.json cannot be read: .*`ganserve tune`"), serving(Settings(state=tmp_path)):
        pass
