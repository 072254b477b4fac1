import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from tiny import CLASSES, batch_of, data_for, tiny
from torch import Tensor, nn

from training import catalog
from training.architectures.r3gan import PRESETS, Basis, Block, ConditionalR3gan, Downsample, R3gan, Upsample
from training.contract import TrainConfig
from training.game import DataSpec, Terms, UnsuitableDataError
from training.layers import STAGES

KEYS = ("r3gan", "r3gan-conditional")
NORMS = (nn.BatchNorm2d, nn.GroupNorm, nn.InstanceNorm2d, nn.LayerNorm)


def networks(architecture: R3gan, size: int = 16, channels: int = 1) -> tuple[nn.Module, nn.Module]:
    game = architecture.games(DataSpec((channels, size, size), CLASSES), Terms())["main"]
    return game.generator, game.discriminator


def count(network: nn.Module) -> int:
    return sum(value.numel() for value in network.parameters())


def seen(network: nn.Module, kind: type[nn.Module], *inputs: Tensor) -> tuple[Tensor, list[tuple[int, ...]]]:
    """The network's output, and the shapes without the batch that its modules of a kind gave on the way."""
    shapes: list[tuple[int, ...]] = []
    for module in network.modules():
        if isinstance(module, kind):
            module.register_forward_hook(lambda _module, _inputs, output: shapes.append(tuple(output.shape[1:])))
    return network(*inputs), shapes


# --- layers -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("size", "stages"),
    [
        (16, [(8, 4), (8, 8), (4, 16)]),
        (28, [(8, 7), (8, 14), (4, 28)]),
        (32, [(8, 4), (8, 8), (8, 16), (4, 32)]),
        (64, [(8, 4), (8, 8), (8, 16), (8, 32), (4, 64)]),
        (256, [(8, 4), (8, 8), (8, 16), (8, 32), (8, 64), (8, 128), (4, 256)]),
    ],
)
def test_the_discriminator_mirrors_the_generator_stage_by_stage(size: int, stages: list[tuple[int, int]], channels: int) -> None:
    architecture = tiny("r3gan", blocks=2)
    assert isinstance(architecture, R3gan)
    generator, discriminator = networks(architecture, size, channels)
    twice = [(width, side, side) for width, side in stages for _ in range(2)]
    image, grown = seen(generator, Block, torch.randn(2, 4))
    assert image.shape == (2, channels, size, size)
    assert grown == twice
    score, shrunk = seen(discriminator, Block, image)
    assert score.shape == (2,)
    assert shrunk == twice[::-1]


def test_a_block_is_a_bottleneck_turned_inside_out() -> None:
    layers = list(Block(48, 16, 8).layers)
    assert [type(layer).__name__ for layer in layers] == ["Conv2d", "LeakyReLU", "Conv2d", "LeakyReLU", "Conv2d"]
    assert [tuple(layer.weight.shape) for layer in layers[::2]] == [(96, 48, 1, 1), (96, 16, 3, 3), (48, 96, 1, 1)]
    assert [layer.bias is not None for layer in layers[::2]] == [True, True, False], "a bias belongs to the rectifier after it"
    assert {layer.negative_slope for layer in layers[1::2]} == {0.2}


@pytest.mark.parametrize("norm", ["batch", "sample", "none"])
@pytest.mark.parametrize("key", KEYS)
def test_no_network_holds_a_norm_whatever_is_allowed(key: str, norm: str) -> None:
    game = tiny(key).games(data_for(key), Terms("batch" if norm == "batch" else "sample" if norm == "sample" else "none"))["main"]
    assert not [module for network in (game.generator, game.discriminator) for module in network.modules() if isinstance(module, NORMS)]


def test_resampling_is_bilinear_and_the_two_directions_are_transposes() -> None:
    torch.manual_seed(0)
    small, large = torch.randn(2, 3, 7, 7), torch.randn(2, 3, 14, 14)
    up, down = Upsample(3)(small), Downsample(3)(large)
    assert up.shape == large.shape
    assert down.shape == small.shape
    inside = (..., slice(1, -1), slice(1, -1))
    assert torch.allclose(up[inside], F.interpolate(small, scale_factor=2.0, mode="bilinear")[inside], atol=1e-6)
    assert torch.allclose(down[inside], F.interpolate(large, scale_factor=0.5, mode="bilinear", antialias=True)[inside], atol=1e-6)
    assert (up * large).sum().item() == pytest.approx(4 * (small * down).sum().item(), rel=1e-4)
    assert torch.allclose(Upsample(1)(torch.ones(1, 1, 4, 4))[inside], torch.ones(())), "brightness stays"


# --- initialisation -----------------------------------------------------------------------------------------------------------


def test_a_fresh_block_is_the_identity_and_its_layers_are_the_smaller_the_more_blocks_there_are() -> None:
    torch.manual_seed(0)
    for num_blocks in (1, 8):
        block = Block(64, 16, num_blocks)
        hidden = torch.randn(2, 64, 5, 5)
        assert torch.equal(block(hidden), hidden)
        expand, _, mix, _, _ = block.layers
        gain = math.sqrt(2 / (1 + 0.2**2)) * num_blocks ** (-1 / 4)
        assert expand.weight.std().item() == pytest.approx(gain / math.sqrt(64), rel=0.05)
        assert mix.weight.std().item() == pytest.approx(gain / math.sqrt(16 * 9), rel=0.05)
        assert not expand.bias.any()
        assert not mix.bias.any()


@pytest.mark.parametrize("blocks", [1, 3])
def test_blocks_are_initialised_for_all_that_their_network_has(blocks: int) -> None:
    torch.manual_seed(0)
    architecture = R3gan(group_width=32, width=64, max_width=64, blocks=blocks)
    for network in networks(architecture):
        first = [module for module in network.modules() if isinstance(module, Block)]
        assert len(first) == 3 * blocks
        gain = math.sqrt(2 / 1.04) * (3 * blocks) ** -0.25
        assert first[0].layers[0].weight.std().item() == pytest.approx(gain / 8, rel=0.05)


def test_a_basis_is_a_standard_normal_picture_a_channel_times_a_strength() -> None:
    torch.manual_seed(0)
    basis = Basis(64, 512, 4)
    assert basis.pictures.std().item() == pytest.approx(1, rel=0.05)
    assert basis.strengths.weight.std().item() == pytest.approx(1 / 8, rel=0.05)
    values = torch.randn(3, 64)
    assert torch.equal(basis(values)[1, 5], basis.pictures[5] * basis.strengths(values)[1, 5])
    assert basis(values).std().item() == pytest.approx(1, rel=0.2), "the first stage begins at the scale of the latent"


# --- presets ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preset", "size", "widths", "group_width"),
    [
        ("small", 28, [64, 32, 16], 16),
        ("small", 64, [128, 128, 64, 32, 16], 16),
        ("cifar10", 32, [768] * 4, 16),
        ("ffhq64", 64, [768, 768, 768, 768, 384], 16),
        ("ffhq256", 256, [768, 768, 768, 768, 384, 192, 96], 16),
        ("imagenet32", 32, [1536] * 4, 32),
        ("imagenet64", 64, [1536] * 5, 32),
    ],
)
def test_presets_have_the_papers_stages(preset: str, size: int, widths: list[int], group_width: int) -> None:
    architecture = R3gan.model_validate({"preset": preset})
    assert architecture.widths(size) == widths
    assert architecture.group_width == group_width
    assert architecture.blocks == (1 if preset == "small" else 2)
    assert architecture.latent_size == 64


def test_the_preset_for_cifar10_has_as_many_weights_as_its_layers_say() -> None:
    generator, discriminator = networks(R3gan.model_validate({"preset": "cifar10"}), 32, 3)
    blocks = 8 * (768 * 1536 + 1536 + 1536 * 16 * 9 + 1536 + 1536 * 768)
    assert count(generator) == blocks + 768 * 4 * 4 + 64 * 768 + 768 * 3
    assert count(discriminator) == blocks + 3 * 768 + 768 * 4 * 4 + 768
    assert count(generator) == 20_732_160


def test_what_is_given_beside_a_preset_wins_and_the_record_rebuilds_it() -> None:
    architecture = R3gan.model_validate({"preset": "ffhq256", "blocks": 1, "max_width": 384})
    assert (architecture.width, architecture.max_width, architecture.blocks) == (96, 384, 1)
    assert R3gan.model_validate_json(architecture.model_dump_json()) == architecture
    assert R3gan() == R3gan.model_validate({"preset": "small"}), "the defaults that the schema shows are those of the preset that it names"


def test_the_schema_lists_the_presets() -> None:
    assert R3gan.model_json_schema()["properties"]["preset"]["enum"] == list(PRESETS)


@pytest.mark.parametrize(
    ("options", "where", "message"),
    [
        ({"preset": "tiny"}, "preset", "'small', 'cifar10'"),
        ({"width": 12}, "width", "twice 12 channels do not part into groups of 16"),
        ({"width": 8, "max_width": 12}, "max_width", "twice 12 channels"),
        ({"width": 256}, "max_width", "256 channels already, and 128 is less"),
        ({"blocks": 0}, "blocks", "greater than or equal to 1"),
        ({"widths": [32, 64]}, "widths", "Extra inputs"),
    ],
)
def test_options_that_build_no_network_are_refused(options: dict[str, object], where: str, message: str) -> None:
    with pytest.raises(ValidationError) as refused:
        R3gan.model_validate(options)
    errors = refused.value.errors()
    assert [error["loc"] for error in errors] == [(where,)]
    assert message in errors[0]["msg"]


# --- what is served -----------------------------------------------------------------------------------------------------------


def test_images_are_clamped_where_they_are_served_and_not_in_training() -> None:
    torch.manual_seed(0)
    generator, _ = networks(R3gan(group_width=4, width=4, max_width=8))
    latent = 3 * torch.randn(16, 64)
    free = generator.train()(latent)
    assert free.abs().max() > 1.5
    assert torch.equal(generator.eval()(latent), free.clamp(-1, 1))


# --- labels -------------------------------------------------------------------------------------------------------------------


def test_a_label_makes_another_image_and_another_score_and_labels_mix() -> None:
    torch.manual_seed(0)
    generator, discriminator = networks(ConditionalR3gan(group_width=4, width=4, max_width=8))
    labels = torch.eye(3)
    latent, image = torch.randn(1, 64).expand(3, -1), torch.randn(1, 1, 16, 16).expand(3, -1, -1, -1)
    images, scores = generator(latent, labels), discriminator(image, labels)
    assert all((images[a] - images[b]).abs().max() > 0.05 for a, b in ((0, 1), (0, 2), (1, 2)))
    assert len({round(score, 4) for score in scores.tolist()}) == 3
    mixed = torch.tensor([[0.5, 0.5, 0.0]])
    assert discriminator(image[:1], mixed).item() == pytest.approx(scores[:2].mean().item(), abs=1e-6)
    assert not torch.allclose(generator(latent[:1], mixed)[0], images[0], atol=1e-3)


def test_label_embeddings_are_as_long_as_what_they_meet() -> None:
    generator, discriminator = networks(ConditionalR3gan())
    weights = {name: tuple(value.shape) for name, value in generator.named_parameters()}
    assert weights["embedding.weight"] == (64, 3)
    assert weights["layers.0.strengths.weight"] == (64, 64 + 64)
    assert dict(discriminator.named_parameters())["embedding.weight"].shape == (64, 3)


def test_a_served_label_is_that_of_the_real_image() -> None:
    batch = batch_of(data_for("r3gan-conditional"), 4)
    given = tiny("r3gan-conditional").given(batch)
    assert torch.equal(given.inputs["label"], batch["label"])
    assert torch.equal(given.condition["label"], batch["label"])


# --- refusals and recipe ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("shape", [(1, 24, 24), (3, 512, 512), (3, 32, 64)])
def test_sizes_that_no_stages_reach_are_refused(key: str, shape: tuple[int, int, int]) -> None:
    with pytest.raises(UnsuitableDataError) as refused:
        tiny(key).check(DataSpec(shape, CLASSES))
    assert str(refused.value) == (
        f"{key} makes square images of 16, 28, 32, 64, 128, 256 pixels, and these are {shape[2]} x {shape[1]};"
        " add the data set again at one of these sizes"
    )
    for size in STAGES:
        tiny(key).check(DataSpec((3, size, size), CLASSES))


def test_labels_are_needed_where_they_are_asked_for_and_there_alone() -> None:
    unlabelled = DataSpec((1, 28, 28))
    tiny("r3gan").check(unlabelled)
    with pytest.raises(
        UnsuitableDataError, match=r"r3gan-conditional needs the class of every image, .* choose r3gan, which takes no labels"
    ):
        tiny("r3gan-conditional").check(unlabelled)


@pytest.mark.parametrize("key", KEYS)
def test_spectral_norm_is_refused(key: str) -> None:
    with pytest.raises(catalog.ConfigError, match=f"spectral_norm cannot be used with {key}: its residual branches begin at zero"):
        catalog.build(TrainConfig(architecture=key, spectral_norm=True))


@pytest.mark.parametrize("key", KEYS)
def test_a_user_who_says_nothing_gets_the_papers_loss_and_penalties(key: str, tmp_path: Path) -> None:
    config = TrainConfig(architecture=key, options={"preset": "cifar10"}, dataset="fashion-mnist-10k")
    resolved = catalog.resolve(config, tmp_path, (tmp_path,))
    assert (resolved.loss, resolved.penalty, resolved.learning_rate_schedule) == ("relativistic", "r1-r2", "cosine")
    assert resolved.betas == resolved.generator.betas == resolved.discriminator.betas == (0.0, 0.99)
    assert resolved.options == {"latent_size": 64, "preset": "cifar10", **PRESETS["cifar10"]}
