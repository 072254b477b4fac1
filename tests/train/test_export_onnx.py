"""An ONNX file beside TorchScript: after the same gates, or left out by name."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_versions import Module, write_module
from torch import Tensor, nn

from training import catalog, export_onnx
from training.catalog import ConfigError
from training.commands import train_command
from training.contract import ModuleSpec, TensorSpec, TrainConfig
from training.datasets import card
from training.export import HeldOut, Provenance, publish, with_onnx
from training.files.directories import verify
from training.game import DataSpec, Player, Terms

PICTURE = TensorSpec(name="image", kind="image", shape=(1, -1, -1), size_multiple=2)
VALUES = TensorSpec(name="latent", kind="latent", shape=(4,), distribution="normal")
SCORE = TensorSpec(name="score", kind="logit", shape=())


class Brighter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        return torch.tanh(self.layer(image))


class Undecided(nn.Module):
    """TorchScript can say what it does; a graph without control flow cannot."""

    def forward(self, latent: Tensor) -> Tensor:
        return latent.sum(1) if bool(latent.sum() > 0) else latent.mean(1) * 4


def exported(folder: Path, module: nn.Module, inputs: TensorSpec, output: TensorSpec) -> ModuleSpec:
    published = write_module(folder, "generator", Module(module, (inputs,), output))
    return with_onnx(published, folder, "generator", Player(module, (inputs,), output))


def test_a_file_takes_any_number_of_pictures_of_any_size_and_names_no_folder(tmp_path: Path) -> None:
    """Also where the output is called as the input is, which no ONNX file may do."""
    module = Brighter().eval()
    spec = exported(tmp_path, module, PICTURE, PICTURE)
    assert sorted(spec.files) == ["onnx", "torchscript"]
    content = verify(tmp_path, spec.files["onnx"]).read_bytes()
    assert spec.files["onnx"].file == "generator.onnx"
    assert str(Path(__file__).parent).encode() not in content
    assert b"site-packages" not in content
    run = export_onnx._runtime(tmp_path / "generator.onnx")
    for shape in ((1, 1, 2, 2), (3, 1, 6, 10)):
        image = torch.rand(shape)
        assert torch.allclose(run(image=image), module(image), atol=1e-6)


def test_a_training_that_asks_for_it_publishes_it(make_config: Callable[..., TrainConfig], datasets_folder: Path, tmp_path: Path) -> None:
    config = make_config(architecture="mlp", name="mine", formats=("onnx",))
    data, built = DataSpec((1, 16, 16)), catalog.build(config)
    players = built.architecture.players(built.architecture.games(data, Terms(built.norm)), data=data, score=built.loss.score)
    provenance = Provenance("a-run", "a paper", config, card("tiny", datasets_folder), {})
    held_out = HeldOut(torch.zeros(64, 1, 16, 16))
    manifest = publish({"generator": players["generator"]}, provenance, held_out, held_out, [tmp_path])
    assert verify(tmp_path / "mine/1", manifest.generator.files["onnx"]).name == "generator.onnx"
    assert train_command(manifest.config).endswith("--formats onnx")


def test_what_cannot_be_exported_is_published_without_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        spec = exported(tmp_path, Undecided(), VALUES, SCORE)
    assert list(spec.files) == ["torchscript"]
    assert not (tmp_path / "generator.onnx").exists()
    assert "the generator is published without an ONNX file: torch cannot export it to ONNX: " in caplog.text


def test_a_file_that_does_not_give_the_same_is_left_out_with_the_figure(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Differs(Brighter):
        def forward(self, image: Tensor) -> Tensor:
            made = super().forward(image)
            return made * 1.01 if torch.onnx.is_in_onnx_export() else made

    spec = PICTURE.model_copy(update={"shape": (1, 4, 4)})
    published = write_module(tmp_path, "generator", Module(Brighter().eval(), (spec,), spec))
    with caplog.at_level(logging.WARNING):
        left = with_onnx(published, tmp_path, "generator", Player(Differs().eval(), (spec,), spec))
    assert list(left.files) == ["torchscript"]
    assert "ONNX output differs from eager by" in caplog.text


def test_a_config_that_wants_it_is_refused_where_the_extra_is_missing(datasets_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainConfig(dataset="tiny", architecture="mlp", formats=("onnx",))
    assert catalog.resolve(config, datasets_folder, ()).formats == ("onnx",)
    monkeypatch.setattr(export_onnx, "PACKAGES", ("onnx", "no_such_package"))
    with pytest.raises(
        ConfigError, match=r"onnx needs packages that are not installed \(no_such_package\): pip install 'ganserve\[onnx\]'"
    ):
        catalog.resolve(config, datasets_folder, ())
