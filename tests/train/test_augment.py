from collections.abc import Callable
from itertools import permutations

import pytest
import torch
from torch import Tensor

from training.augment import augment

KINDS = ("color", "translation", "cutout")
every_kind = pytest.mark.parametrize("kind", KINDS)
SHAPES = [(1, 28, 28), (3, 32, 32), (3, 16, 24), (1, 7, 5)]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int, shape: tuple[int, int, int]) -> Tensor:
    return torch.rand(count, *shape, generator=seeded(9)) * 2 - 1


# --- what holds for every kind ------------------------------------------------------------------------------------------------


@every_shape
def test_without_a_kind_nothing_is_drawn_and_nothing_changes(shape: tuple[int, int, int]) -> None:
    given, random = images(4, shape), seeded()
    assert augment(given, (), random) is given
    assert torch.equal(random.get_state(), seeded().get_state())


@every_kind
@every_shape
def test_the_shape_stays_and_the_given_images_are_not_written_to(kind: str, shape: tuple[int, int, int]) -> None:
    given = images(6, shape)
    before = given.clone()
    made = augment(given, [kind], seeded())
    assert made.shape == given.shape
    assert made.dtype == given.dtype
    assert not torch.equal(made, given)
    assert torch.equal(given, before)


@every_kind
def test_the_random_generator_given_decides_all(kind: str) -> None:
    given = images(4, (3, 16, 16))
    torch.manual_seed(0)
    one = augment(given, [kind], seeded(5))
    torch.manual_seed(1)
    assert torch.equal(one, augment(given, [kind], seeded(5))), "the global generator is not asked"
    assert not torch.equal(one, augment(given, [kind], seeded(6)))


@every_kind
def test_every_image_has_a_draw_of_its_own(kind: str) -> None:
    given = images(1, (3, 32, 32)).expand(16, -1, -1, -1)
    made = augment(given, [kind], seeded())
    assert len({tuple(image.flatten().tolist()) for image in made}) > 8


def test_the_order_in_which_kinds_are_named_does_not_matter() -> None:
    given = images(4, (3, 16, 16))
    results = [augment(given, kinds, seeded()) for kinds in permutations(KINDS)]
    assert all(torch.equal(results[0], other) for other in results)


@pytest.mark.parametrize("kinds", [*([kind] for kind in KINDS), KINDS], ids="+".join)
def test_gradients_reach_the_image_and_its_gradients_too(kinds: list[str]) -> None:
    """Against difference quotients, once for the generator's loss and twice for a penalty on the gradient."""
    given = (torch.rand(2, 3, 5, 4, generator=seeded(), dtype=torch.float64) * 2 - 1).requires_grad_()

    def squares(image: Tensor) -> Tensor:
        return augment(image, kinds, seeded(3)).pow(3).sum((1, 2, 3))

    assert torch.autograd.gradcheck(squares, given)
    assert torch.autograd.gradgradcheck(squares, given)


# --- color --------------------------------------------------------------------------------------------------------------------


def draws(count: int, made: Callable[[Tensor], Tensor]) -> Tensor:
    """Brightness, saturation and contrast of `count` images, (3, count), from what becomes of one known image.

    Its pixels are p + q and p - q in two colours and p in the third, so: mean p, spread by saturation and contrast; and a second row of
    pixels is without colour, spread by contrast alone.
    """
    known = torch.zeros(count, 3, 2, 2)
    known[:, 0, 0], known[:, 1, 0] = 0.2, -0.2  # colours about grey 0
    known[:, :, 1, 0], known[:, :, 1, 1] = 0.4, -0.4  # greys about grey 0
    result = made(known)
    brightness = result.mean((1, 2, 3))
    contrast = (result[:, 0, 1, 0] - result[:, 0, 1, 1]) / 0.8
    saturation = (result[:, 0, 0, 0] - result[:, 1, 0, 0]) / 0.4 / contrast
    return torch.stack([brightness, saturation, contrast])


def test_color_is_brightness_then_saturation_then_contrast_in_their_ranges() -> None:
    brightness, saturation, contrast = draws(2000, lambda known: augment(known, ["color"], seeded()))
    for values, low, high in ((brightness, -0.5, 0.5), (saturation, 0.0, 2.0), (contrast, 0.5, 1.5)):
        assert low - 1e-5 <= values.min() < low + 0.02
        assert high - 0.02 < values.max() <= high + 1e-5
        assert torch.histc(values, bins=4, min=low, max=high).min() > 400, "everywhere alike"


def test_color_shifts_the_mean_by_brightness_alone() -> None:
    given = images(500, (3, 8, 8))
    shift = (augment(given, ["color"], seeded()) - given).mean((1, 2, 3))
    assert shift.abs().max() <= 0.5 + 1e-5
    assert shift.std() == pytest.approx(12**-0.5, rel=0.1), "uniform over an interval of 1"


def test_a_grey_image_stays_grey() -> None:
    grey = images(20, (1, 8, 8)).expand(-1, 3, -1, -1)
    made = augment(grey, ["color"], seeded())
    assert torch.allclose(made[:, :1].expand(-1, 3, -1, -1), made, atol=1e-6)


# --- translation --------------------------------------------------------------------------------------------------------------


def moved(image: Tensor, down: int, right: int) -> Tensor:
    """(C, H, W) by whole pixels, zeros coming in; pixel by pixel."""
    _, height, width = image.shape
    result = torch.zeros_like(image)
    for row in range(height):
        for column in range(width):
            if 0 <= row - down < height and 0 <= column - right < width:
                result[:, row, column] = image[:, row - down, column - right]
    return result


@pytest.mark.parametrize("shape", [(2, 16, 24), (1, 28, 28), (1, 7, 5)], ids=str)
def test_translation_moves_by_whole_pixels_up_to_an_eighth_of_a_side_and_fills_with_zero(shape: tuple[int, int, int]) -> None:
    image = images(1, shape)[0]
    reach = [int(side / 8 + 0.5) for side in shape[1:]]
    ways = {(down, right): moved(image, down, right) for down in range(-reach[0], reach[0] + 1) for right in range(-reach[1], reach[1] + 1)}
    made = augment(image.expand(40 * len(ways), -1, -1, -1), ["translation"], seeded())
    found = [[way for way, expected in ways.items() if torch.equal(one, expected)] for one in made]
    assert all(len(way) == 1 for way in found), "each is one of the ways, unchanged otherwise"
    counts = {way: sum(one == [way] for one in found) for way in ways}
    assert min(counts.values()) > 10, "all ways alike, standing still among them"


# --- cutout -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 16, 24), (1, 28, 28), (1, 7, 5), (1, 6, 10)], ids=str)
def test_cutout_clears_a_rectangle_of_half_a_side_wherever_its_centre_lies(shape: tuple[int, int, int]) -> None:
    made = augment(torch.ones(3000, *shape), ["cutout"], seeded())
    assert set(made.unique().tolist()) == {0.0, 1.0}
    cleared = made[:, 0] == 0
    rows, columns = cleared.any(2), cleared.any(1)
    assert torch.equal(cleared, rows[:, :, None] & columns[:, None, :]), "a rectangle"
    for inside, side in ((rows, shape[1]), (columns, shape[2])):
        size = int(side / 2 + 0.5)
        lengths = inside.sum(1)
        edges = inside.int().diff(dim=1).abs().sum(1)
        assert edges.max() <= 2, "in one piece"
        assert lengths.max() == size
        for edge in (0, -1):
            assert lengths[inside[:, edge]].min() == size - size // 2, "what sticks out over an edge is lost"
        whole = lengths == size
        starts = inside[whole].int().argmax(1)
        assert starts.min() == 0
        assert starts.max() == side - size
        assert inside.any(0).all(), "every pixel may be hit"


def test_cutout_is_the_same_in_all_channels() -> None:
    made = augment(torch.ones(50, 3, 16, 16), ["cutout"], seeded())
    assert torch.equal(made[:, 0], made[:, 1])
    assert torch.equal(made[:, 0], made[:, 2])
