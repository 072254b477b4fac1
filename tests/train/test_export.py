import json
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from training import catalog, datasets, export
from training.contract import DatasetCard, Manifest, TensorSpec, TrainConfig
from training.export import NUM_SAMPLES, ExportError, HeldOut, Provenance, draw_inputs, publish, published_weights, script
from training.files import versions
from training.files.directories import STAGING, DamagedFileError, verify
from training.game import DataSpec, Given, Player, Terms
from training.layers import add_spectral_norm

MakeConfig = Callable[..., TrainConfig]
VALUES = TensorSpec(name="latent", kind="latent", shape=(4,), distribution="normal")
IMAGE = TensorSpec(name="image", kind="image", shape=(1, 2, 2))
SPEC = DataSpec((1, 16, 16))
HELD_OUT = HeldOut(torch.rand(100, 1, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1)
EXAMPLES = HeldOut(torch.zeros(NUM_SAMPLES, 1, 16, 16))


class Sound(nn.Module):
    """Passes every gate."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, latent: Tensor) -> Tensor:
        return torch.tanh(self.layer(latent)).reshape(-1, 1, 2, 2)


class Overflows(Sound):
    def forward(self, latent: Tensor) -> Tensor:
        return (self.layer(latent) * 1e38 * 1e38).reshape(-1, 1, 2, 2)


class SometimesNaN(Sound):
    def forward(self, latent: Tensor) -> Tensor:
        return torch.sqrt(self.layer(latent)).reshape(-1, 1, 2, 2)


class ScriptedDiffers(Sound):
    def forward(self, latent: Tensor) -> Tensor:
        images = torch.tanh(self.layer(latent)).reshape(-1, 1, 2, 2)
        if torch.jit.is_scripting():
            images = images * 1.001
        return images


class BatchStatistics(Sound):
    """Batch norm that stays in training mode: the mean and the variance are the batch's."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4, track_running_stats=False)

    def forward(self, latent: Tensor) -> Tensor:
        return torch.tanh(self.norm(self.layer(latent))).reshape(-1, 1, 2, 2)


class LooksAtTheFirstRow(Sound):
    def forward(self, latent: Tensor) -> Tensor:
        return torch.tanh(self.layer(latent) + latent[:1]).reshape(-1, 1, 2, 2)


class Random(Sound):
    def forward(self, latent: Tensor) -> Tensor:
        return torch.tanh(self.layer(latent) + torch.randn_like(latent)).reshape(-1, 1, 2, 2)


class Flat(Sound):
    def forward(self, latent: Tensor) -> Tensor:
        return torch.tanh(self.layer(latent))


class Double(Sound):
    def forward(self, latent: Tensor) -> Tensor:
        return torch.tanh(self.layer(latent)).reshape(-1, 1, 2, 2).double()


class OneImage(Sound):
    def forward(self, latent: Tensor) -> Tensor:
        return torch.tanh(self.layer(latent))[:1].reshape(-1, 1, 2, 2)


def player(module: nn.Module) -> Player:
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return Player(module, (VALUES,), IMAGE)


# --- gates --------------------------------------------------------------------------------------------------------------------


def test_a_sound_module_passes_and_is_left_as_it_was() -> None:
    module = Sound().train()
    scripted = script("generator", player(module))
    assert module.training
    assert all(weight.requires_grad for weight in module.parameters())
    assert not scripted.training
    latent = torch.randn(5, 4)
    assert torch.equal(scripted(latent), module(latent))


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        (Overflows, r"^generator: 32 output values are not finite$"),
        (SometimesNaN, r"^generator: \d+ output values are not finite$"),
        (ScriptedDiffers, r"^generator: scripted output differs from eager by [\d.]+; at most 1e-05 is allowed$"),
        (BatchStatistics, r"^generator: the output for one row changes with its batch-mates by 0\.\d+; at most 1e-05 is allowed$"),
        (LooksAtTheFirstRow, r"^generator: the output for one row changes with its batch-mates by [\d.]+; at most 1e-05 is allowed$"),
        (Random, r"^generator: scripted output differs from eager by [\d.]+; at most 1e-05 is allowed$"),
        (Flat, r"^generator: output is torch\.float32 \(8, 4\), and \(8, 1, 2, 2\) of torch\.float32 is declared$"),
        (Double, r"^generator: output is torch\.float64 \(8, 1, 2, 2\), and \(8, 1, 2, 2\) of torch\.float32 is declared$"),
        (OneImage, r"^generator: output is torch\.float32 \(1, 1, 2, 2\), and \(8, 1, 2, 2\) of torch\.float32 is declared$"),
    ],
)
def test_each_gate_refuses_with_its_sentence(kind: type[nn.Module], sentence: str) -> None:
    with pytest.raises(ExportError, match=sentence):
        script("generator", player(kind()))


def test_large_weights_whose_last_bits_depend_on_the_kernel_are_no_reason_to_refuse() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 4096, bias=False), nn.Linear(4096, 4))
    with torch.no_grad():  # sums of thousands that come to nothing, but for what is rounded on the way
        first, second = (layer.weight for layer in module)
        first.mul_(1e3)
        first[2048:] = -first[:2048]
        second[:, 2048:] = second[:, :2048]
    script("generator", Player(module, (VALUES.model_copy(update={"name": "input"}),), VALUES))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_weight_that_is_not_finite_is_named_even_where_no_output_shows_it(value: float) -> None:
    module = Sound()
    broken = player(module)
    with torch.no_grad():
        module.layer.weight[1, 2] = value
    with pytest.raises(ExportError, match=r"^generator: weight layer\.weight has 1 values that are not finite$"):
        script("generator", broken)


def test_statistics_of_batch_norm_must_be_finite_too() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    with torch.no_grad():
        module[1].running_var[0] = torch.nan  # type: ignore[operator]
    with pytest.raises(ExportError, match=r"weight 1\.running_var has 1 values"):
        script("discriminator", Player(module, (VALUES.model_copy(update={"name": "input"}),), VALUES))


def test_batch_norm_with_statistics_and_dropout_are_exported_in_evaluation_mode() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.9)).train()
    for _ in range(3):
        module(torch.randn(16, 4) * 5 + 2)
    scripted = script("generator", Player(module, (VALUES.model_copy(update={"name": "input"}),), VALUES))
    latent = torch.randn(6, 4)
    assert torch.allclose(scripted(latent)[2:3], scripted(latent[2:3]), atol=1e-6)
    assert torch.allclose(scripted(latent), module.eval()(latent), atol=1e-6)


# --- inputs -------------------------------------------------------------------------------------------------------------------


def test_latents_are_drawn_by_one_generator_an_image() -> None:
    drawn = draw_inputs([VALUES], [5, 6, 2**32 - 1], {})["latent"]
    for row, seed in zip(drawn, [5, 6, 2**32 - 1], strict=True):
        assert torch.equal(row, torch.randn(4, generator=torch.Generator().manual_seed(seed)))
    torch.manual_seed(123)
    assert torch.equal(draw_inputs([VALUES], [6], {})["latent"][0], drawn[1])


def test_uniform_latents_fill_minus_one_to_one() -> None:
    uniform = VALUES.model_copy(update={"distribution": "uniform", "shape": (2000,)})
    drawn = draw_inputs([uniform], [0], {})["latent"]
    assert -1 <= drawn.min() < -0.99
    assert 0.99 < drawn.max() <= 1


def test_several_latents_of_an_image_differ_and_come_in_declared_order() -> None:
    second = VALUES.model_copy(update={"name": "noise"})
    drawn = draw_inputs([VALUES, second], [9], {})
    random = torch.Generator().manual_seed(9)
    assert torch.equal(drawn["latent"][0], torch.randn(4, generator=random))
    assert torch.equal(drawn["noise"][0], torch.randn(4, generator=random))


def test_what_is_given_is_passed_on_beside_the_latents() -> None:
    label = TensorSpec(name="label", kind="label", shape=(2,))
    given = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    drawn = draw_inputs([VALUES, label], [5, 6], {"label": given})
    assert list(drawn) == ["latent", "label"]
    assert torch.equal(drawn["label"], given)
    assert torch.equal(drawn["latent"], draw_inputs([VALUES], [5, 6], {})["latent"])


# --- publishing ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def card(datasets_folder: Path) -> DatasetCard:
    return datasets.card("tiny", datasets_folder)


Publish = Callable[..., Manifest]


@pytest.fixture
def players(make_config: MakeConfig) -> dict[str, Player]:
    torch.manual_seed(0)
    config = make_config(architecture="dcgan")
    built = catalog.build(config)
    return built.architecture.players(built.architecture.games(SPEC, Terms(built.norm)), data=SPEC, score=built.loss.score)


@pytest.fixture
def publish_as(players: dict[str, Player], card: DatasetCard, make_config: MakeConfig, tmp_path: Path) -> Publish:
    """Publishes the players as `mine` for a run of this id."""
    config = make_config(architecture="dcgan", name="mine")

    def publish_run(run: str, *repositories: Path) -> Manifest:
        provenance = Provenance(run, "a paper", config, card, {"images": 240.0})
        return publish(players, provenance, HELD_OUT, EXAMPLES, repositories or [tmp_path / "models"])

    return publish_run


def test_a_published_version_is_whole_and_its_manifest_reads_back(publish_as: Publish, tmp_path: Path, card: DatasetCard) -> None:
    manifest = publish_as("a-run")
    folder = tmp_path / "models" / "mine" / "1"
    assert sorted(path.name for path in folder.iterdir()) == ["discriminator.pt", "generator.pt", "manifest.json", "samples.png"]
    assert Manifest.model_validate_json((folder / versions.MANIFEST).read_bytes()) == manifest
    assert (manifest.name, manifest.version, manifest.run, manifest.architecture) == ("mine", 1, "a-run", "dcgan")
    assert (manifest.dataset, manifest.metrics, manifest.source) == (card, {"images": 240.0}, "a paper")
    assert manifest.torch_version == torch.__version__
    assert manifest.discriminator is not None
    for spec in (manifest.generator.files["torchscript"], manifest.discriminator.files["torchscript"], manifest.samples):
        verify(folder, spec)
    assert list((tmp_path / "models" / STAGING).iterdir()) == []


def test_versions_are_numbered_and_a_run_publishes_once(publish_as: Publish, tmp_path: Path) -> None:
    manifests = [publish_as(run) for run in ("first", "second", "first", "third", "second")]
    assert [manifest.version for manifest in manifests] == [1, 2, 1, 3, 2]
    assert manifests[2] == manifests[0]
    assert list(versions.versions([tmp_path / "models"], "mine")) == [1, 2, 3]


def test_numbers_go_on_after_those_of_a_repository_that_is_only_read(publish_as: Publish, tmp_path: Path) -> None:
    mine, demo = tmp_path / "mine", tmp_path / "demo"
    publish_as("first", demo)
    assert publish_as("second", mine, demo).version == 2
    assert publish_as("first", mine, demo).version == 3, "another run of the same id elsewhere is none of ours"
    assert list(versions.versions([demo], "mine")) == [1]


@pytest.mark.parametrize("content", [None, b"{", b"\xff"])
def test_a_damaged_version_does_not_hold_up_the_next(content: bytes | None, publish_as: Publish, tmp_path: Path) -> None:
    publish_as("first")
    manifest = tmp_path / "models" / "mine" / "1" / versions.MANIFEST
    manifest.unlink()
    if content is not None:
        manifest.write_bytes(content)
    assert publish_as("second").version == 2


def test_publishers_at_once_get_different_numbers(publish_as: Publish, tmp_path: Path) -> None:
    with ThreadPoolExecutor(6) as pool:
        manifests = list(pool.map(publish_as, [f"run-{number}" for number in range(6)]))
    assert sorted(manifest.version for manifest in manifests) == [1, 2, 3, 4, 5, 6]
    for manifest in manifests:
        folder = tmp_path / "models" / "mine" / str(manifest.version)
        assert json.loads((folder / versions.MANIFEST).read_bytes())["run"] == manifest.run


def test_a_model_that_fails_a_gate_publishes_nothing(publish_as: Publish, players: dict[str, Player], tmp_path: Path) -> None:
    with torch.no_grad():
        next(players["discriminator"].module.parameters()).fill_(torch.nan)
    with pytest.raises(ExportError, match=r"^discriminator: weight layers\.0\.weight has \d+ values that are not finite$"):
        publish_as("a-run")
    assert versions.names([tmp_path / "models"]) == []


def test_the_probe_is_what_the_published_module_gives(publish_as: Publish, tmp_path: Path) -> None:
    manifest = publish_as("a-run")
    assert manifest.discriminator is not None
    for spec in (manifest.generator, manifest.discriminator):
        module = torch.jit.load(tmp_path / "models" / "mine" / "1" / spec.files["torchscript"].file)
        output = module(**export.example_inputs(spec.inputs, spec.probe.num_rows, spec.probe.seed)).flatten()
        stride = max(1, len(output) // 64)
        assert output[::stride][:64].tolist() == pytest.approx(spec.probe.expected, abs=1e-6)
        assert len(set(spec.probe.expected)) > 4


def test_a_published_file_names_no_folder_of_the_machine_that_trained(
    publish_as: Publish, players: dict[str, Player], tmp_path: Path
) -> None:
    publish_as("a-run")
    for key, player in players.items():
        path = tmp_path / "models" / "mine" / "1" / f"{key}.pt"
        with zipfile.ZipFile(path) as archive:
            entries = {name: archive.read(name) for name in archive.namelist()}
        assert any("/architectures/dcgan" in name and name.endswith(".py") for name in entries), "the code itself is there"
        for name, content in entries.items():
            assert b"site-packages" not in content, name
            assert str(Path(export.__file__).parent.parent).encode() not in content, name
        inputs = export.example_inputs(player.inputs, 4)
        assert torch.equal(torch.jit.load(path)(**inputs), player.module.eval()(**inputs))


def test_published_weights_are_those_of_the_networks(publish_as: Publish, players: dict[str, Player], tmp_path: Path) -> None:
    manifest = publish_as("a-run")
    folder = tmp_path / "models" / "mine" / "1"
    for key, player in players.items():
        weights = published_weights(manifest, folder, key)
        wanted = player.module.state_dict()
        assert list(weights) == list(wanted)
        assert all(torch.equal(value, wanted[name]) for name, value in weights.items())
    with pytest.raises(ExportError, match="mine/1 was published without a discriminator"):
        published_weights(manifest.model_copy(update={"discriminator": None}), folder, "discriminator")
    (folder / "generator.pt").write_bytes(b"nonsense")
    with pytest.raises(DamagedFileError, match=r"generator\.pt has 8 bytes"):
        published_weights(manifest, folder, "generator")


# --- samples and scores -------------------------------------------------------------------------------------------------------


def test_the_sample_grid_is_seeds_0_to_63_drawn_one_generator_an_image(
    publish_as: Publish, players: dict[str, Player], tmp_path: Path
) -> None:
    publish_as("a-run")
    with Image.open(tmp_path / "models" / "mine" / "1" / "samples.png") as picture:
        sheet = np.asarray(picture.convert("L")).astype(int)
    assert sheet.shape == (8 * 18 + 2, 8 * 18 + 2), "eight cells a side, and two pixels of padding"
    generator = players["generator"].module.eval()
    for seed in range(NUM_SAMPLES):
        with torch.inference_mode():
            image = generator(torch.randn(1, 4, generator=torch.Generator().manual_seed(seed)))[0, 0]
        row, column = 2 + seed // 8 * 18, 2 + seed % 8 * 18
        cell = sheet[row : row + 16, column : column + 16]
        assert np.abs(cell - ((image.numpy() + 1) * 127.5)).max() <= 1


def test_the_score_reference_is_quantiles_of_held_out_and_of_generated_images(publish_as: Publish, players: dict[str, Player]) -> None:
    with torch.no_grad():
        for player in players.values():
            for weight in player.module.parameters():
                weight.mul_(5)  # fresh networks score all images alike
    reference = publish_as("a-run").score_reference
    assert reference is not None
    assert reference.generated[100] - reference.generated[0] > 0.1
    assert (reference.num_real, reference.num_generated) == (100, 100)
    assert len(reference.real) == len(reference.generated) == 101
    assert list(reference.real) == sorted(reference.real)
    assert list(reference.generated) == sorted(reference.generated)
    discriminator, generator = players["discriminator"].module.eval(), players["generator"].module.eval()
    with torch.inference_mode():
        real = discriminator(HELD_OUT.images)
        latents = [torch.randn(4, generator=torch.Generator().manual_seed(seed)) for seed in range(NUM_SAMPLES, NUM_SAMPLES + 100)]
        generated = discriminator(generator(torch.stack(latents)))
    for quantiles, scores in ((reference.real, real), (reference.generated, generated)):
        assert quantiles[0] == pytest.approx(scores.min().item(), rel=1e-4, abs=1e-5)
        assert quantiles[50] == pytest.approx(scores.quantile(0.5).item(), rel=1e-4, abs=1e-5)
        assert quantiles[100] == pytest.approx(scores.max().item(), rel=1e-4, abs=1e-5)


class Brightness(nn.Module):
    """A discriminator whose score is the mean pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, image: Tensor) -> Tensor:
        return image.flatten(1).mean(1) * self.weight


class PatchBrightness(Brightness):
    def forward(self, image: Tensor) -> Tensor:
        return image * self.weight


@pytest.mark.parametrize(("kind", "shape"), [(Brightness, ()), (PatchBrightness, (1, 2, 2))])
def test_a_patch_map_counts_as_its_mean(kind: type[nn.Module], shape: tuple[int, ...]) -> None:
    discriminator = Player(kind(), (IMAGE,), TensorSpec(name="score", kind="logit", shape=shape))
    held_out = torch.linspace(-1, 1, 101).reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    reference = export.score_reference(player(Sound()), discriminator, HeldOut(held_out))
    assert reference.real == pytest.approx(tuple(torch.linspace(-1, 1, 101).tolist()), abs=1e-6)


def test_a_generator_without_a_discriminator_is_published(
    players: dict[str, Player], card: DatasetCard, make_config: MakeConfig, tmp_path: Path
) -> None:
    provenance = Provenance("a-run", "a paper", make_config(architecture="dcgan"), card, {})
    manifest = publish({"generator": players["generator"]}, provenance, HELD_OUT, EXAMPLES, [tmp_path])
    assert (manifest.discriminator, manifest.score_reference) == (None, None)


def test_samples_that_are_not_finite_are_refused() -> None:
    class FailsLate(Sound):
        """Finite for the probe's inputs; not for every latent."""

        def forward(self, latent: Tensor) -> Tensor:
            return super().forward(latent) / (latent.abs().amax(1) < 2).float().reshape(-1, 1, 1, 1)

    with pytest.raises(ExportError, match=r"^generator: \d+ sample values are not finite$"):
        export.generate(player(FailsLate()), EXAMPLES)


def test_sampling_leaves_the_mode_of_the_network_alone(players: dict[str, Player]) -> None:
    module = players["generator"].module.train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    images = export.generate(players["generator"], EXAMPLES)
    assert images.shape == (NUM_SAMPLES, 1, 16, 16)
    assert module.training
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


# --- what is given ------------------------------------------------------------------------------------------------------------


class Negative(nn.Module):
    """Pictures in, their negatives out; of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(-torch.ones(()))

    def forward(self, image: Tensor) -> Tensor:
        return image * self.weight


def test_where_there_is_a_right_answer_the_sheet_shows_baseline_image_and_answer() -> None:
    free = TensorSpec(name="image", kind="image", shape=(1, -1, -1))
    sources = torch.rand(20, 1, 4, 6)
    examples = HeldOut(torch.full((20, 1, 4, 6), 0.5), Given({"image": sources}, {}, baseline=sources))
    generator = Player(Negative(), (free,), free)
    script("generator", generator)
    sheet = export.sheet(generator, examples)
    assert sheet.shape == (16, 1, 4, 18)
    assert torch.equal(sheet[:, :, :, :6], sources[:16])
    assert torch.equal(sheet[:, :, :, 6:12], -sources[:16])
    assert torch.equal(sheet[:, :, :, 12:], examples.images[:16])


def test_some_of_what_is_held_out_are_evenly_spaced_with_all_that_belongs_to_them() -> None:
    images = torch.arange(10.0).reshape(10, 1, 1, 1)
    whole = HeldOut(images, Given({"a": images + 100}, {"b": images + 200}, images + 300))
    some = whole.some(4)
    assert some.images.flatten().tolist() == [0, 3, 6, 9]
    assert some.given.inputs["a"].flatten().tolist() == [100, 103, 106, 109]
    assert some.given.condition["b"].flatten().tolist() == [200, 203, 206, 209]
    assert some.given.baseline is not None
    assert some.given.baseline.flatten().tolist() == [300, 303, 306, 309]
    assert len(whole.some(99).images) == 10


def test_spectral_norm_is_folded_into_plain_weights_when_exported() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1), nn.Flatten(0))
    add_spectral_norm(module)
    for _ in range(20):
        module(torch.randn(3, 4))
    latent = TensorSpec(name="input", kind="latent", shape=(4,), distribution="normal")
    scripted = script("discriminator", Player(module, (latent,), TensorSpec(name="score", kind="logit", shape=())))
    assert sorted(scripted.state_dict()) == ["0.bias", "0.weight", "2.bias", "2.weight"]
    assert torch.linalg.matrix_norm(scripted.state_dict()["0.weight"], 2) == pytest.approx(1, abs=1e-3)
    inputs = torch.randn(3, 4)
    assert torch.allclose(scripted(inputs), module.eval()(inputs), atol=1e-6)
    assert "parametrizations.0.original" not in scripted.state_dict(), "the network in training keeps its own"


def test_other_players_are_published_as_parts(
    players: dict[str, Player], card: DatasetCard, make_config: MakeConfig, tmp_path: Path
) -> None:
    provenance = Provenance("a-run", "a paper", make_config(architecture="dcgan"), card, {})
    manifest = publish(players | {"level-8": players["generator"]}, provenance, HELD_OUT, EXAMPLES, [tmp_path])
    assert list(manifest.parts) == ["level-8"]
    verify(tmp_path / manifest.name / "1", manifest.parts["level-8"].files["torchscript"])
