from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from tiny import batch_of, tiny
from torch import Tensor, nn

from training import catalog, export
from training.architectures.srgan import Srgan, enlarge, matching_distance, perceptual_distance, pixel_distance, pretrained_maps, reduce
from training.contract import UserError
from training.features.vgg import VGG19
from training.game import DataSpec, Game, Norm, Round, Terms, UnsuitableDataError

COLOUR = DataSpec((3, 16, 16))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def layers(network: nn.Module) -> list[nn.Module]:
    return [module for module in network.modules() if not list(module.children())]


def game_of(data: DataSpec = COLOUR, norm: Norm = "batch", **options: object) -> Game:
    return tiny("srgan", **options).games(data, Terms(norm))["main"]


def some_weights(network: nn.Module) -> nn.Module:
    """The network with every weight at work; a fresh generator ends in zeros."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.rand_like(parameter) * 0.1 + 0.01)
    return network.eval()


# --- networks -----------------------------------------------------------------------------------------------------------------


def test_srgan_of_the_papers_size_has_the_papers_generator_without_batch_norm() -> None:
    generator = game_of(DataSpec((3, 96, 96)), scale=4, num_blocks=16, generator_width=64).generator
    block = ["Conv2d", "PReLU", "Conv2d"]
    assert [type(layer).__name__ for layer in layers(generator)] == [
        *["Conv2d", "PReLU"],
        *block * 16,
        "Conv2d",
        *["Conv2d", "PixelShuffle", "PReLU"] * 2,
        "Conv2d",
    ]
    shapes = [tuple(layer.weight.shape) for layer in layers(generator) if isinstance(layer, nn.Conv2d)]
    assert shapes == [(64, 3, 9, 9), *[(64, 64, 3, 3)] * 33, *[(256, 64, 3, 3)] * 2, (3, 64, 9, 9)]


@pytest.mark.parametrize("norm", ["batch", "sample", "none"])
def test_srgan_has_the_papers_discriminator(norm: Norm) -> None:
    discriminator = game_of(DataSpec((3, 96, 96)), norm, discriminator_width=64).discriminator
    convolutions = [layer for layer in layers(discriminator) if isinstance(layer, nn.Conv2d)]
    assert [layer.out_channels for layer in convolutions] == [64, 64, 128, 128, 256, 256, 512, 512]
    assert [layer.stride[0] for layer in convolutions] == [1, 2] * 4
    assert [layer.out_features for layer in layers(discriminator) if isinstance(layer, nn.Linear)] == [1024, 1]
    norms = {"batch": nn.BatchNorm2d, "sample": nn.GroupNorm, "none": nn.Identity}
    assert [type(block[1]) for block in discriminator.blocks] == [nn.Identity, *[norms[norm]] * 7], "no norm in the first"


@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_fresh_srgan_is_the_bicubic_enlargement(scale: int, channels: int) -> None:
    image = torch.rand(2, channels, 5, 7) * 2 - 1
    generator = game_of(DataSpec((channels, 16, 16)), scale=scale).generator.eval()
    made = generator(image)
    assert made.shape == (2, channels, 5 * scale, 7 * scale)
    assert torch.equal(made, enlarge(image, scale))


def test_neighbours_of_a_pixel_shuffle_start_equal() -> None:
    generator = game_of(generator_width=6).generator
    first = generator.tail[:2](torch.randn(1, 6, 3, 3))
    assert torch.equal(first, first[:, :, ::2, ::2].repeat_interleave(2, 2).repeat_interleave(2, 3))
    assert not torch.allclose(first[0, 0], first[0, 1])


def test_srgan_clamps_when_it_is_served_and_not_in_training() -> None:
    generator = some_weights(game_of().generator)
    image = torch.ones(1, 3, 4, 4, requires_grad=True)
    assert generator(image).max() == 1
    made = generator.train()(image)
    assert made.max() > 1
    (gradient,) = torch.autograd.grad(made.sum(), image)
    assert gradient.all(), "a pixel beyond the range comes back"


@pytest.mark.parametrize("num_blocks", [1, 3])
@pytest.mark.parametrize("scale", [2, 4])
def test_the_halo_of_srgan_is_what_its_output_depends_on_and_no_more(scale: int, num_blocks: int) -> None:
    architecture = tiny("srgan", scale=scale, num_blocks=num_blocks)
    games = architecture.games(COLOUR, Terms())
    halo = architecture.players(games, data=COLOUR, score="logit")["generator"].inputs[0].halo
    assert halo is not None
    generator = some_weights(games["main"].generator).train().double()
    side, middle = 2 * halo + 5, halo + 2
    image = (torch.rand(1, 3, side, side, dtype=torch.float64) * 0.1).requires_grad_()
    place = slice(middle * scale, (middle + 1) * scale)
    (gradient,) = torch.autograd.grad(generator(image)[:, :, place, place].sum(), image)
    reached = gradient.abs().sum((0, 1)).nonzero()
    assert (middle - reached.min(0).values).tolist() == [halo, halo]
    assert (reached.max(0).values - middle).tolist() == [halo, halo]


def test_a_tile_with_its_halo_equals_the_whole() -> None:
    architecture = tiny("srgan")
    games = architecture.games(COLOUR, Terms())
    spec = architecture.players(games, data=COLOUR, score="logit")["generator"].inputs[0]
    assert (spec.scale, spec.size_multiple, spec.shape) == (4, 1, (3, -1, -1))
    assert spec.halo is not None
    generator = games["main"].generator.eval()
    generator.tail[-1].reset_parameters()  # a fresh one ends in zeros
    image = torch.rand(1, 3, 20, 60) - 0.5
    whole = generator(image)
    assert (whole - enlarge(image, 4)).abs().mean() > 0.01
    start, stop = 20, 33
    tile = generator(image[..., start - spec.halo : stop + spec.halo])
    core = tile[..., spec.halo * 4 : (spec.halo + stop - start) * 4]
    assert torch.allclose(core, whole[..., start * 4 : stop * 4], atol=1e-6)


# --- data ---------------------------------------------------------------------------------------------------------------------


def drawing(side: int) -> Tensor:
    """(1, 1, side, side) in [-1, 1]: grey that runs from dark to light, with a sharp edge through it."""
    rows, columns = torch.meshgrid(*[torch.linspace(-1, 1, side)] * 2, indexing="ij")
    return (rows * columns * (rows + columns > 0.3))[None, None]


def by_pillow(image: Tensor, side: int) -> Tensor:
    """(1, 1, side, side): resized by Pillow in floating point, which rounds nothing on the way."""
    picture = Image.fromarray(image[0, 0].numpy()).resize((side, side), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(picture))[None, None].clamp(-1, 1)


@pytest.mark.parametrize("scale", [2, 4])
def test_low_resolution_is_what_pillow_makes_of_a_picture_in_8_bits(scale: int) -> None:
    small = reduce(drawing(48), scale)
    levels = (small + 1) * 127.5
    assert torch.allclose(levels, levels.round(), atol=1e-4), "an upload has 8 bits, and so has training"
    assert (small - by_pillow(drawing(48), 48 // scale)).abs().max() <= 0.5 / 127.5 + 1e-5
    assert small.abs().max() <= 1


def test_the_baseline_is_what_pillow_makes_of_the_low_resolution() -> None:
    assert torch.allclose(enlarge(drawing(12), 4), by_pillow(drawing(12), 48), atol=1e-5)


@pytest.mark.parametrize("scale", [2, 4])
def test_what_is_given_to_the_served_srgan_is_what_it_learns_from(scale: int) -> None:
    architecture = tiny("srgan", scale=scale)
    batch = batch_of(COLOUR, 3)
    given = architecture.given(batch)
    dealt = architecture.games(COLOUR, Terms())["main"].deal(batch, torch.Generator())
    assert torch.equal(given.inputs["image"], dealt.inputs["image"])
    assert given.inputs["image"].shape == (3, 3, 16 // scale, 16 // scale)
    assert dealt.target is batch["image"]
    assert given.condition == dealt.condition == {}
    assert given.baseline is not None
    assert torch.equal(given.baseline, enlarge(given.inputs["image"], scale))


# --- losses -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "wanted"), [("l1", 1.0), ("mse", 1.25), ("charbonnier", ((0.25 + 1e-6) ** 0.5 + (2.25 + 1e-6) ** 0.5) / 2)]
)
def test_pixel_distances_by_hand(kind: str, wanted: float) -> None:
    assert pixel_distance(kind, torch.tensor([0.5, -1.0]), torch.tensor([0.0, 0.5])).item() == pytest.approx(wanted)


def test_the_perceptual_distance_compares_directions_of_features() -> None:
    def maps(images: Tensor) -> list[Tensor]:
        return [images, 5 * images[:, :, :1, :1]]

    # two channels; two places in the first map, one of them alone in the second
    generated, target = torch.zeros(1, 2, 1, 2), torch.zeros(1, 2, 1, 2)
    generated[0, :, 0, 0], target[0, :, 0, 0] = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 0.5])  # at right angles: 2
    generated[0, :, 0, 1], target[0, :, 0, 1] = torch.tensor([1.0, 1.0]), torch.tensor([4.0, 4.0])  # the same: 0
    assert perceptual_distance(maps, generated, target).item() == pytest.approx(((2 + 0) / 2 + 2) / 2)


def test_the_matching_distance_is_the_mean_over_the_discriminators_maps() -> None:
    def maps(images: Tensor) -> list[Tensor]:
        return [images, images[:, :1] * 3]

    generated, target = torch.tensor([[[[1.0]], [[0.0]]]]), torch.tensor([[[[0.0]], [[0.0]]]])
    assert matching_distance(maps, generated, target).item() == pytest.approx((0.5 + 3) / 2)


def test_the_discriminators_maps_are_those_that_it_judges_by() -> None:
    discriminator = game_of().discriminator.eval()
    image = torch.rand(2, 3, 32, 32)
    maps = discriminator.maps(image)
    assert [tuple(each.shape[1:]) for each in maps][::2] == [(2, 32, 32), (4, 16, 16), (8, 8, 8), (16, 4, 4)]
    assert torch.equal(discriminator.head(maps[-1].mean((2, 3))).flatten(), discriminator(image))


def test_content_from_a_pretrained_network_moves_images_and_nothing_else() -> None:
    game = game_of(DataSpec((1, 32, 32)), content="efficientnet-lite0", content_weight=1.0, pixel_weight=0.0)
    assert game.reconstruction is not None
    target = torch.rand(2, 1, 32, 32) * 2 - 1
    generated = (target + 0.1 * torch.randn(target.shape)).requires_grad_()
    loss = game.reconstruction(generated, Round({}, target, {}))
    assert 0.001 < loss.item() < 4
    (gradient,) = torch.autograd.grad(loss, generated)
    assert gradient.abs().sum((1, 2, 3)).all()
    assert game.reconstruction(target, Round({}, target, {})).item() == pytest.approx(0, abs=1e-6)
    coloured = game.reconstruction(generated.expand(-1, 3, -1, -1), Round({}, target.expand(-1, 3, -1, -1), {}))
    assert torch.isclose(coloured, loss), "grey is the colour of equal channels"
    sizes = [sum(value.numel() for value in network.state_dict().values()) for network in (game.generator, game.discriminator)]
    assert max(sizes) < 20_000, "no player holds the pretrained network"


def test_content_from_vgg19_needs_its_file(tmp_path: Path) -> None:
    architecture = tiny("srgan", content="vgg19")
    with pytest.raises(UserError, match=r"vgg19\.pth") as caught:
        architecture.games(COLOUR, Terms(weights=tmp_path))
    assert str(tmp_path) in str(caught.value)
    torch.save(VGG19().state_dict(), tmp_path / "vgg19.pth")
    (features,) = pretrained_maps("vgg19", tmp_path)(torch.rand(1, 1, 32, 32))
    assert features.shape == (1, 512, 2, 2)


@pytest.mark.parametrize("content", ["none", "discriminator"])
def test_after_the_pixel_phase_content_stands_beside_the_pixels(content: str) -> None:
    options = {"content_weight": 3.0} if content != "none" else {}
    game = game_of(content=content, pixel_weight=2.0, adversarial_weight=0.25, pixel_phase=0.5, pixel_loss="mse", **options)
    generated, target = torch.rand(2, 2, 3, 16, 16)
    dealt = Round({}, target, {})
    pixels = (generated - target).square().mean()
    assert game.warmup is not None
    assert game.reconstruction is not None
    assert torch.isclose(game.warmup(generated, dealt), pixels)
    assert (game.warmup_share, game.adversarial_weight) == (0.5, 0.25)
    wanted = 2 * pixels
    if content == "discriminator":
        wanted = wanted + 3 * matching_distance(game.discriminator.maps, generated, target)
    assert torch.isclose(game.reconstruction(generated, dealt), wanted)


# --- options ------------------------------------------------------------------------------------------------------------------


def test_a_pixel_phase_of_the_whole_run_serves_no_discriminator() -> None:
    for pixel_phase, wanted, idle in ((1.0, ["generator"], {}), (0.5, ["discriminator", "generator"], {"content": "none"})):
        architecture = Srgan(num_blocks=1, generator_width=4, discriminator_width=2, pixel_phase=pixel_phase, **idle)
        players = architecture.players(architecture.games(COLOUR, Terms()), data=COLOUR, score="logit")
        assert sorted(players) == wanted
        for name, player in players.items():
            export.script(name, player)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"content": "none", "content_weight": 2.0}, "content_weight would have no effect, as content is none"),
        (
            {"pixel_phase": 1.0, "adversarial_weight": 0.1},
            "adversarial_weight would have no effect, as nothing comes after the pixel phase",
        ),
        ({"pixel_phase": 1.0, "content": "vgg19", "pixel_weight": 2.0}, "pixel_weight and content would have no effect"),
    ],
)
def test_an_option_without_effect_is_refused(options: dict[str, object], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        Srgan.model_validate(options)


@pytest.mark.parametrize(
    ("shape", "scale", "sentence"),
    [
        (
            (3, 30, 32),
            4,
            "srgan learns from images whose sides are multiples of 4, at least 16 pixels, and these are 32 x 30;"
            " add the data set again with another --size",
        ),
        (
            (1, 12, 12),
            2,
            "srgan learns from images whose sides are multiples of 2, at least 16 pixels, and these are 12 x 12;"
            " add the data set again with another --size",
        ),
        ((4, 32, 32), 4, "srgan enlarges images of 1 or 3 channels, and these have 4; add the data set again"),
    ],
)
def test_images_that_srgan_cannot_learn_from_are_refused(shape: tuple[int, int, int], scale: int, sentence: str) -> None:
    with pytest.raises(UnsuitableDataError) as caught:
        tiny("srgan", scale=scale).check(DataSpec(shape))
    assert str(caught.value) == sentence


def test_srgan_needs_no_labels_and_no_pairs() -> None:
    catalog.architectures()["srgan"]().check(DataSpec((3, 28, 96)))
