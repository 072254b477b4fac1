"""The Laplacian pyramid: exact, and in the networks what the paper says of it."""

from collections.abc import Iterable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny
from torch import Tensor, nn

from training.architectures.lapgan import LEAST_DEVIATION, Lapgan, detail, double, halve, pyramid
from training.export import example_inputs, script
from training.game import DataSpec, Game, Round, Terms, UnsuitableDataError

COLOUR = DataSpec((3, 32, 32))


def images_of(data: DataSpec, count: int = 8, seed: int = 0) -> Tensor:
    return torch.rand(count, *data.shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def tiny_games(data: DataSpec = COLOUR, **options: object) -> dict[str, Game]:
    torch.manual_seed(0)
    return tiny("lapgan", **options).games(data, Terms())


def deal(game: Game, images: Tensor) -> Round:
    return game.deal({"image": images}, torch.Generator().manual_seed(1))


def layers(network: nn.Module, kinds: tuple[type[nn.Module], ...]) -> Iterable[nn.Module]:
    return [module for module in network.modules() if isinstance(module, kinds)]


# --- the pyramid --------------------------------------------------------------------------------------------------------------

sides = st.integers(1, 5)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3), sides, sides, st.integers(1, 4))
def test_the_smallest_image_and_the_details_give_the_image_back(seed: int, channels: int, height: int, width: int, levels: int) -> None:
    scale = 2 ** (levels - 1)
    pixels = torch.randint(256, (2, channels, height * scale, width * scale), generator=torch.Generator().manual_seed(seed))
    images = pyramid(pixels / 127.5 - 1, levels)
    assert [image.shape[2:] for image in images] == [(height * 2**level, width * 2**level) for level in range(levels)]
    rebuilt = images[0]
    for image in images[1:]:
        rebuilt = double(rebuilt) + detail(image)
    assert torch.equal(((rebuilt + 1) * 127.5).round().long(), pixels)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), sides, sides)
def test_detail_has_no_mean_and_doubling_adds_none(seed: int, height: int, width: int) -> None:
    random = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 2, height, width, generator=random) * 2 - 1
    image = torch.rand(1, 2, 2 * height, 2 * width, generator=random) * 2 - 1
    assert torch.allclose(halve(double(coarse)), coarse, atol=1e-6)
    assert detail(double(coarse)).abs().max() < 1e-6
    assert halve(detail(image)).abs().max() < 1e-6


def test_doubling_is_smooth_where_the_image_is() -> None:
    ramp = torch.linspace(-1, 1, 8).expand(1, 1, 8, 8)
    steps = double(ramp)[0, 0, :, 2:-2].diff(dim=1)
    assert torch.allclose(steps, torch.full_like(steps, 1 / 7), atol=1e-6), "two pixels a step, none of them a jump"


# --- levels and layers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("height", "width", "coarsest_size", "keys"),
    [
        (32, 32, 8, ["level-8", "level-16", "level-32"]),
        (64, 64, 8, ["level-8", "level-16", "level-32", "level-64"]),
        (28, 28, 8, ["level-7", "level-14", "level-28"]),
        (36, 36, 9, ["level-9", "level-18", "level-36"]),
        (16, 24, 8, ["level-4", "level-8", "level-16"]),
    ],
)
def test_there_is_a_game_for_every_size_from_the_smallest_on(height: int, width: int, coarsest_size: int, keys: list[str]) -> None:
    data = DataSpec((1, height, width))
    architecture = tiny("lapgan", coarsest_size=coarsest_size)
    architecture.check(data)
    games = architecture.games(data, Terms())
    assert list(games) == keys
    for key, game in games.items():
        dealt = deal(game, images_of(data))
        size = int(key.removeprefix("level-"))
        assert game.generator(**dealt.inputs).shape == dealt.target.shape == (8, 1, size, size * width // height)
        assert game.discriminator(dealt.target, **dealt.condition).shape == (8,)


def test_every_level_is_shown_half_as_many_images_as_the_one_before() -> None:
    assert [game.share for game in tiny_games().values()] == [4, 2, 1]


def test_it_has_the_layers_that_it_is_known_for() -> None:
    first, *_, last = Lapgan().games(COLOUR, Terms()).values()
    sizes = [
        [(layer.in_features, layer.out_features) for layer in layers(network, (nn.Linear,))]
        for network in (first.generator, first.discriminator)
    ]
    assert sizes == [[(100, 1200), (1200, 1200), (1200, 192)], [(192, 600), (600, 600), (600, 1)]]
    convolutions = [
        [(layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride) for layer in layers(network, (nn.Conv2d,))]
        for network in (last.generator, last.discriminator)
    ]
    assert convolutions == [
        [(7, 64, (5, 5), (1, 1)), (64, 64, (5, 5), (1, 1)), (64, 12, (5, 5), (1, 1))],
        [(6, 64, (5, 5), (1, 1)), (64, 64, (5, 5), (2, 2))],
    ]
    assert [layer.in_features for layer in layers(last.discriminator, (nn.Linear,))] == [64 * 16 * 16]
    assert [len(list(layers(game.discriminator, (nn.Dropout,)))) for game in (first, last)] == [2, 1]


@pytest.mark.parametrize("norm", ["batch", "sample", "none"])
def test_no_discriminator_holds_a_norm(norm: str) -> None:
    games = Lapgan().games(COLOUR, Terms(norm))  # type: ignore[arg-type]
    assert not [module for game in games.values() for module in game.discriminator.modules() if "Norm" in type(module).__name__]


@pytest.mark.parametrize(
    ("shape", "coarsest_size", "reason"),
    [
        ((1, 30, 30), 8, "these are 30 x 30, which halve to 15 x 15, where a side is odd"),
        ((3, 27, 32), 8, "these are 32 x 27, where a side is odd"),
        ((1, 8, 8), 8, "a side above its coarsest_size: coarsest_size is 8, and these are 8 x 8"),
        ((1, 32, 32), 32, "add the data set again at size 128"),
    ],
)
def test_images_that_cannot_be_halved_are_refused(shape: tuple[int, int, int], coarsest_size: int, reason: str) -> None:
    with pytest.raises(UnsuitableDataError) as refused:
        tiny("lapgan", coarsest_size=coarsest_size).check(DataSpec(shape))
    assert reason in str(refused.value)
    assert "add the data set again at size" in str(refused.value)
    assert "coarsest_size" in str(refused.value)


# --- a level ------------------------------------------------------------------------------------------------------------------


def test_a_level_adds_detail_and_leaves_the_coarse_image_as_it_is() -> None:
    games = tiny_games()
    images = images_of(COLOUR) / 2
    dealt = deal(games["level-32"], images)
    coarse = halve(images)
    generated = games["level-32"].generator(latent=dealt.inputs["latent"], coarse=coarse)
    assert torch.allclose(halve(generated), coarse, atol=1e-6)
    assert detail(generated).abs().max() > 0.01


def test_no_level_leaves_the_range_of_images() -> None:
    generator = tiny_games()["level-32"].generator
    generator.get_buffer("deviation").fill_(100.0)
    generated = generator(latent=torch.randn(4, 1024), coarse=torch.ones(4, 3, 16, 16))
    assert generated.abs().max() == 1


def test_every_value_of_the_noise_counts() -> None:
    generator = tiny_games()["level-16"].generator
    noise = torch.randn(1, 256, generator=torch.Generator().manual_seed(0)).requires_grad_()
    generator(latent=noise, coarse=torch.zeros(1, 3, 8, 8)).square().sum().backward()
    assert noise.grad is not None
    assert (noise.grad != 0).all()


def test_detail_is_made_and_judged_in_units_of_its_deviation() -> None:
    data, architecture, games = COLOUR, tiny("lapgan"), tiny_games()
    images = images_of(data, 64) * 0.1
    architecture.fit(games, images)
    wanted = [float(detail(image).std()) for image in pyramid(images, 3)[1:]]
    for role in ("generator", "discriminator"):
        found = [float(getattr(games[key], role).get_buffer("deviation")) for key in ("level-16", "level-32")]
        assert found == pytest.approx(wanted)

    game, dealt = games["level-32"], deal(games["level-32"], images)
    inputs = {"latent": dealt.inputs["latent"], "coarse": torch.zeros(64, 3, 16, 16)}
    made, score = game.generator(**inputs), game.discriminator.eval()(detail(images))
    for network in (game.generator, game.discriminator):
        network.get_buffer("deviation").mul_(2)
    assert torch.allclose(game.generator(**inputs), 2 * made, atol=1e-6)
    assert not torch.allclose(game.discriminator(detail(images)), score)


def test_the_deviation_of_flat_images_is_not_nothing() -> None:
    games = tiny_games()
    tiny("lapgan").fit(games, torch.zeros(4, *COLOUR.shape))
    assert float(games["level-32"].discriminator.get_buffer("deviation")) == pytest.approx(LEAST_DEVIATION)


# --- between the levels -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("share", "least", "most"), [(0.0, 0, 0), (0.5, 20, 44), (1.0, 64, 64)])
def test_a_share_of_the_coarse_images_is_made_by_the_levels_before(share: float, least: int, most: int) -> None:
    games = tiny_games(generated_share=share)
    for network in (games["level-8"].generator, games["level-16"].generator):
        for weight in network.eval().parameters():
            weight.data.zero_()  # they make grey images now
    images = images_of(COLOUR, 64)
    dealt = deal(games["level-32"], images)
    real = (dealt.inputs["coarse"] == halve(images)).flatten(1).all(1)
    grey = (dealt.inputs["coarse"] == 0).flatten(1).all(1)
    assert (real ^ grey).all()
    assert least <= int(grey.sum()) <= most
    assert torch.equal(dealt.target, images)


def test_what_is_learned_at_a_level_changes_nothing_before_it() -> None:
    games = tiny_games(generated_share=1.0)
    game, dealt = games["level-32"], deal(games["level-32"], images_of(COLOUR))
    game.discriminator(game.generator(**dealt.inputs), **dealt.condition).sum().backward()
    assert all(weight.grad is None for key in ("level-8", "level-16") for weight in games[key].generator.parameters())
    assert all(weight.grad is not None and weight.grad.any() for weight in game.generator.parameters())


def test_the_first_level_is_dealt_the_image_at_its_smallest() -> None:
    images = images_of(COLOUR)
    dealt = deal(tiny_games()["level-8"], images)
    assert torch.allclose(dealt.target, nn.functional.avg_pool2d(images, 4), atol=1e-6)
    assert list(dealt.inputs) == ["latent"]


# --- as it is served ----------------------------------------------------------------------------------------------------------


def test_the_whole_generator_is_its_levels_one_after_the_other() -> None:
    games = tiny_games()
    players = tiny("lapgan").players(games, data=COLOUR, score="logit")
    assert list(players) == ["generator", "discriminator", "stages", "level-8", "level-16", "level-32"]
    served = {name: script(name, player) for name, player in players.items()}
    (spec,) = players["generator"].inputs
    assert (spec.kind, spec.distribution, spec.shape) == ("latent", "normal", (4 + 16 * 16 + 32 * 32,))
    inputs = example_inputs((spec,), 3)
    first, second, third = inputs["latent"].split([4, 256, 1024], dim=1)
    small = served["level-8"](latent=first)
    middle = served["level-16"](latent=second, coarse=small)
    image = served["level-32"](latent=third, coarse=middle)
    assert torch.allclose(served["generator"](**inputs), image, atol=1e-6)
    stages = served["stages"](**inputs).split(32, dim=3)
    for stage, made in zip(stages, (small, middle, image), strict=True):
        assert torch.allclose(stage, made.repeat_interleave(32 // made.shape[2], 2).repeat_interleave(32 // made.shape[3], 3), atol=1e-6)


def test_the_whole_discriminator_scores_the_image_at_every_size() -> None:
    games = tiny_games()
    player = tiny("lapgan").players(games, data=COLOUR, score="critic")["discriminator"]
    assert (player.output.kind, player.output.shape) == ("critic", (3,))
    images = images_of(COLOUR)
    scores = player.module.eval()(image=images)
    for column, (game, image) in enumerate(zip(games.values(), pyramid(images, 3), strict=True)):
        assert torch.allclose(scores[:, column], game.discriminator.eval()(image), atol=1e-6)


def test_the_last_levels_noise_changes_the_last_image_alone() -> None:
    player = tiny("lapgan").players(tiny_games(), data=COLOUR, score="logit")["stages"]
    (latent,) = example_inputs(player.inputs, 2).values()
    other = torch.cat([latent[:, :260], latent[:, 260:].flip(1)], dim=1)
    with torch.inference_mode():
        before, after = (player.module.eval()(latent=each).split(32, dim=3) for each in (latent, other))
    assert [torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [True, True, False]
