import pytest
import torch
from tiny import batch_of, tiny
from torch import Tensor, nn

from training import catalog, export
from training.architectures.pix2pix import Pix2pix, mirror, patch_size, with_channels
from training.game import DataSpec, Game, Norm, Round, Terms, UnsuitableDataError

PAIRS = DataSpec((3, 16, 16), None, (1, 16, 16))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def pairs_of(side: int) -> DataSpec:
    return DataSpec((3, side, side), None, (3, side, side))


def layers(network: nn.Module) -> list[nn.Module]:
    return [module for module in network.modules() if not list(module.children())]


def game_of(data: DataSpec = PAIRS, norm: Norm = "batch", **options: object) -> Game:
    return tiny("pix2pix", **options).games(data, Terms(norm))["main"]


# --- networks -----------------------------------------------------------------------------------------------------------------


def test_pix2pix_of_the_papers_size_has_the_papers_u_net() -> None:
    generator = game_of(pairs_of(256), num_levels=8, generator_width=64).generator
    convolutions = [layer for layer in layers(generator.down) if isinstance(layer, nn.Conv2d)]
    widths = [(3, 64), (64, 128), (128, 256), (256, 512), *[(512, 512)] * 4]
    assert [(layer.in_channels, layer.out_channels) for layer in convolutions] == widths
    assert {(layer.kernel_size, layer.stride) for layer in convolutions} == {((4, 4), (2, 2))}
    grown = [layer for layer in (*layers(generator.up), *layers(generator.last)) if isinstance(layer, nn.Conv2d)]
    assert [(layer.in_channels, layer.out_channels) for layer in grown] == [
        *[(512, 512), *[(1024, 512)] * 3],
        *[(1024, 256), (512, 128), (256, 64), (128, 3)],
    ]
    assert [type(layer).__name__ for layer in generator.last] == ["ReLU", "DoublingConv2d", "Tanh"]
    assert [layer.p for layer in layers(generator) if isinstance(layer, nn.Dropout)] == [0.5] * 3 + [0.0] * 4


def test_the_first_level_and_the_bottleneck_have_no_norm() -> None:
    generator = game_of(pairs_of(64), num_levels=6).generator
    normed = [any(isinstance(layer, nn.InstanceNorm2d) for layer in level) for level in generator.down]
    assert normed == [False, True, True, True, True, False]
    assert all(any(isinstance(layer, nn.InstanceNorm2d) for layer in level) for level in generator.up)
    for layer in layers(generator):
        if isinstance(layer, nn.InstanceNorm2d):
            assert layer.affine
            assert layer.running_mean is None, "statistics are those of the image itself, in training and after"


def test_a_picture_of_one_place_at_the_bottleneck_still_says_what_it_is() -> None:
    generator = game_of(dropout=0.0, num_levels=4).generator.train()
    bottleneck: list[Tensor] = []
    generator.down[-1].register_forward_hook(lambda _module, _inputs, output: bottleneck.append(output))
    image = torch.rand(2, 1, 16, 16)
    assert generator(image).shape == (2, 3, 16, 16)
    assert bottleneck[0].shape[2:] == (1, 1)
    assert not torch.allclose(bottleneck[0][0], bottleneck[0][1])


@pytest.mark.parametrize(("height", "width"), [(8, 8), (8, 24), (40, 16)])
def test_pix2pix_takes_any_size_that_is_a_multiple(height: int, width: int) -> None:
    architecture = tiny("pix2pix")
    player = architecture.players(architecture.games(PAIRS, Terms()), data=PAIRS, score="logit")["generator"]
    (spec,) = player.inputs
    assert (spec.name, spec.kind, spec.shape, spec.size_multiple, spec.halo, spec.scale) == ("image", "image", (1, -1, -1), 8, None, 1)
    assert player.output.shape == (3, -1, -1)
    made = player.module.eval()(torch.rand(2, 1, height, width))
    assert made.shape == (2, 3, height, width)
    assert made.abs().max() <= 1


def test_every_level_passes_its_features_across() -> None:
    generator = game_of().generator.eval()
    passed: list[Tensor] = []
    taken: list[Tensor] = []
    for level in generator.down[:-1]:
        level.register_forward_hook(lambda _module, _inputs, output: passed.append(output))
    for level in (*generator.up[1:], generator.last):
        level.register_forward_pre_hook(lambda _module, inputs: taken.append(inputs[0]))
    generator(torch.rand(1, 1, 16, 16))
    for features, both in zip(passed[::-1], taken, strict=True):
        assert torch.equal(both[:, -features.shape[1] :], features)
        assert both.shape[1] == 2 * features.shape[1]


def test_dropout_is_noise_in_training_and_gone_when_served() -> None:
    generator, image = game_of(dropout=0.5).generator, torch.rand(1, 1, 16, 16)
    assert not torch.equal(generator.train()(image), generator(image))
    assert torch.equal(generator.eval()(image), generator(image))


@pytest.mark.parametrize(("side", "patch", "num_scores"), [(16, 16, 6), (32, 16, 14), (64, 34, 14), (128, 70, 14), (256, 70, 30)])
@pytest.mark.parametrize("norm", ["batch", "none"])
def test_a_score_looks_at_the_papers_patch(side: int, patch: int, num_scores: int, norm: Norm) -> None:
    assert patch_size(side, side) == patch
    architecture = tiny("pix2pix", discriminator_width=2)
    games = architecture.games(pairs_of(side), Terms(norm))
    discriminator = games["main"].discriminator.eval()
    image = torch.rand(1, 3, side, side, requires_grad=True)
    scores = discriminator(image, torch.rand(1, 3, side, side))
    assert tuple(scores.shape) == (1, num_scores, num_scores)
    assert architecture.players(games, data=pairs_of(side), score="logit")["discriminator"].output.shape == (num_scores, num_scores)
    if patch <= side - 16:
        (gradient,) = torch.autograd.grad(scores[0, num_scores // 2, num_scores // 2], image)
        seen = gradient.abs().sum((0, 1)).nonzero()
        assert (seen.max(0).values - seen.min(0).values + 1).tolist() == [patch, patch]


def test_pix2pix_has_the_papers_discriminator() -> None:
    discriminator = game_of(pairs_of(256), discriminator_width=64).discriminator
    convolutions = [layer for layer in layers(discriminator) if isinstance(layer, nn.Conv2d)]
    widths = [(layer.in_channels, layer.out_channels, layer.stride[0]) for layer in convolutions]
    assert widths == [(6, 64, 2), (64, 128, 2), (128, 256, 2), (256, 512, 1), (512, 1, 1)]
    kinds = [type(layer).__name__ for layer in layers(discriminator)]
    assert kinds == ["Conv2d", "LeakyReLU", *["Conv2d", "BatchNorm2d", "LeakyReLU"] * 3, "Conv2d"]


@pytest.mark.parametrize("norm", ["batch", "sample", "none"])
def test_pix2pix_starts_from_the_papers_normal_weights(norm: Norm) -> None:
    game = game_of(pairs_of(32), norm, generator_width=32, discriminator_width=32)
    for layer in (layer for network in (game.generator, game.discriminator) for layer in layers(network)):
        weight, bias = getattr(layer, "weight", None), getattr(layer, "bias", None)
        if isinstance(weight, Tensor) and weight.numel() >= 32:
            is_convolution = isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
            assert weight.mean().item() == pytest.approx(0.0 if is_convolution else 1.0, abs=0.02)
            assert weight.std().item() == pytest.approx(0.02, rel=0.5)
        assert bias is None or not bias.any()


# --- the game -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mirrored", [True, False])
def test_both_pictures_of_a_pair_are_mirrored_alike_or_not_at_all(mirrored: bool) -> None:
    image = torch.arange(16.0).reshape(1, 1, 4, 4).repeat(64, 1, 1, 1)
    dealt = game_of(mirrored=mirrored).deal({"image": image, "source": image + 100}, torch.Generator().manual_seed(0))
    assert torch.equal(dealt.inputs["image"], dealt.target + 100)
    assert dealt.condition["source"] is dealt.inputs["image"]
    turned = [torch.equal(row, image[0].flip(2)) for row in dealt.target]
    assert all(torch.equal(row, image[0]) or is_turned for row, is_turned in zip(dealt.target, turned, strict=True))
    assert (16 < sum(turned) < 48) if mirrored else not any(turned)


def test_mirroring_exchanges_left_and_right_of_the_chosen() -> None:
    images = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]).repeat(2, 1, 1, 1)
    mirrored = mirror(images, torch.tensor([False, True]))
    assert mirrored[:, 0].tolist() == [[[1, 2], [3, 4]], [[2, 1], [4, 3]]]


def test_the_reconstruction_is_a_hundred_times_the_mean_absolute_difference() -> None:
    dealt = Round({}, torch.zeros(1, 3, 2, 2), {})
    for options, wanted in (({}, 50.0), ({"l1_weight": 10.0}, 5.0)):
        game = game_of(**options)
        assert game.reconstruction is not None
        assert game.reconstruction(torch.full((1, 3, 2, 2), -0.5), dealt).item() == pytest.approx(wanted)
        assert (game.adversarial_weight, game.warmup) == (1.0, None)


def test_the_discriminator_judges_an_image_beside_its_source() -> None:
    discriminator = game_of().discriminator.eval()
    image, source = torch.rand(1, 3, 16, 16), torch.rand(1, 1, 16, 16)
    assert not torch.allclose(discriminator(image, source), discriminator(image, 1 - source))
    assert not torch.allclose(discriminator(image, source), discriminator(1 - image, source))


def test_the_served_players_take_what_is_given_to_them() -> None:
    architecture = tiny("pix2pix")
    players = architecture.players(architecture.games(PAIRS, Terms()), data=PAIRS, score="logit")
    batch = batch_of(PAIRS, 2)
    given = architecture.given(batch)
    assert given.inputs["image"] is batch["source"]
    assert torch.equal(given.condition["source"], batch["source"])
    assert [(spec.name, spec.shape) for spec in players["discriminator"].inputs] == [("image", (3, 16, 16)), ("source", (1, 16, 16))]
    made = export.script("generator", players["generator"])(**given.inputs)
    assert export.script("discriminator", players["discriminator"])(image=made, **given.condition).shape == (2, 6, 6)


def test_the_baseline_is_the_source_in_the_images_channels() -> None:
    grey, colour = torch.rand(2, 1, 4, 4), torch.rand(2, 3, 4, 4)
    assert with_channels(grey, 1) is grey
    assert with_channels(colour, 3) is colour
    assert torch.equal(with_channels(grey, 3), torch.cat([grey] * 3, 1))
    assert torch.allclose(with_channels(colour, 1)[:, 0], 0.299 * colour[:, 0] + 0.587 * colour[:, 1] + 0.114 * colour[:, 2])
    batch = batch_of(PAIRS, 2)
    baseline = tiny("pix2pix").given(batch).baseline
    assert baseline is not None
    assert torch.equal(baseline, batch["source"].expand(2, 3, 16, 16))


# --- refusals -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (DataSpec((3, 64, 64)), "pix2pix learns from pairs of images, and this set has none; add one with --pairs"),
        (
            DataSpec((3, 64, 64), None, (3, 32, 64)),
            "pix2pix keeps a picture's size, and these images are 64 x 64, their sources 64 x 32; add the set again with one --size",
        ),
        (
            DataSpec((3, 48, 80), None, (3, 48, 80)),
            "pix2pix of 5 levels wants sides that are multiples of 32, and these images are 80 x 48; add the set again with another --size,"
            " or train with num_levels 4",
        ),
        (
            DataSpec((1, 30, 30), None, (1, 30, 30)),
            "pix2pix of 5 levels wants sides that are multiples of 32, and these images are 30 x 30; add the set again with another --size",
        ),
        (
            DataSpec((3, 32, 32), None, (4, 32, 32)),
            "pix2pix takes and makes images of 1 or 3 channels, and these images have 3, their sources 4; add the set again",
        ),
    ],
)
def test_data_that_pix2pix_cannot_learn_from_are_refused(data: DataSpec, sentence: str) -> None:
    with pytest.raises(UnsuitableDataError) as caught:
        Pix2pix().check(data)
    assert str(caught.value) == sentence


def test_images_smaller_than_a_patch_are_refused() -> None:
    with pytest.raises(UnsuitableDataError, match="judges patches of 16 pixels, and these images are 8 x 8; add the set again"):
        tiny("pix2pix").check(pairs_of(8))


@pytest.mark.parametrize("side", [32, 64, 96, 128, 256])
def test_the_usual_sizes_are_taken(side: int) -> None:
    catalog.architectures()["pix2pix"]().check(pairs_of(side))
