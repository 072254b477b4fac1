"""Seeds to latents, and the paths between latents."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from app.latents import draw, lerp, path, slerp, truncate
from training.contract import MAX_SEED, TensorSpec

NORMAL = TensorSpec(name="latent", kind="latent", shape=(100,), distribution="normal")
SHORT = TensorSpec(name="short", kind="latent", shape=(3,), distribution="normal")
UNIFORM = TensorSpec(name="noise", kind="latent", shape=(2, 4, 4), distribution="uniform")
LABEL = TensorSpec(name="label", kind="label", shape=(10,))

quick = settings(max_examples=60)
fractions = st.floats(0, 1, allow_subnormal=False)
numbers = st.floats(-100, 100, width=32, allow_subnormal=False)
seeds = st.integers(0, MAX_SEED)


@st.composite
def two_vectors(draw_one: st.DrawFn) -> tuple[Tensor, Tensor]:
    size = draw_one(st.integers(1, 12))
    rows = [torch.tensor(draw_one(st.lists(numbers, min_size=size, max_size=size)), dtype=torch.float32) for _ in range(2)]
    return rows[0], rows[1]


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.view(torch.int32), b.view(torch.int32))


def angle(a: Tensor, b: Tensor) -> float:
    u, v = a.double() / a.double().norm(), b.double() / b.double().norm()
    return 2 * math.atan2(float((u - v).norm()), float((u + v).norm()))


# --- draw -------------------------------------------------------------------------------------------------------------------


@quick
@given(st.lists(seeds, min_size=1, max_size=6))
def test_a_row_depends_on_its_seed_alone(some: list[int]) -> None:
    together = draw([NORMAL, SHORT, UNIFORM], some)
    for row, seed in enumerate(some):
        alone = draw([NORMAL, SHORT, UNIFORM], [seed])
        for name, values in together.items():
            assert same_bits(values[row], alone[name][0])


def test_the_bits_of_a_seed_are_those_of_one_generator_in_declared_order() -> None:
    generator = torch.Generator().manual_seed(7)
    first, second = torch.randn(100, generator=generator), torch.randn(3, generator=generator)
    drawn = draw([NORMAL, SHORT], [6, 7])
    assert same_bits(drawn["latent"][1], first)
    assert same_bits(drawn["short"][1], second)


def test_the_state_of_the_global_generator_is_neither_used_nor_moved() -> None:
    torch.manual_seed(1)
    first, state = draw([NORMAL], [3]), torch.get_rng_state()
    torch.manual_seed(2)
    draw([NORMAL], [3])
    assert same_bits(first["latent"], draw([NORMAL], [3])["latent"])
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)


def test_shapes_are_the_declared_ones_and_only_latents_are_drawn() -> None:
    drawn = draw([LABEL, UNIFORM, NORMAL], [0, 1, MAX_SEED])
    assert {name: tuple(values.shape) for name, values in drawn.items()} == {"noise": (3, 2, 4, 4), "latent": (3, 100)}
    assert all(values.dtype == torch.float32 for values in drawn.values())


def test_no_seeds_give_no_rows() -> None:
    assert draw([NORMAL], [])["latent"].shape == (0, 100)


def test_values_follow_the_declared_distribution() -> None:
    normal = draw([NORMAL], range(200))["latent"]
    assert abs(float(normal.mean())) < 0.03
    assert abs(float(normal.std()) - 1) < 0.03
    uniform = draw([UNIFORM], range(200))["noise"]
    assert float(uniform.min()) >= -1
    assert float(uniform.max()) <= 1
    assert abs(float(uniform.mean())) < 0.03
    assert abs(float(uniform.std()) - 1 / math.sqrt(3)) < 0.03


def test_a_latent_without_a_distribution_is_refused() -> None:
    with pytest.raises(ValueError, match="'latent' declares no distribution"):
        draw([TensorSpec(name="latent", kind="latent", shape=(4,))], [0])


# --- truncate ---------------------------------------------------------------------------------------------------------------


def test_truncation_1_changes_no_bit_and_0_gives_the_mean() -> None:
    drawn = draw([NORMAL, UNIFORM], [1, 2])
    drawn["latent"][0, 0] = -0.0
    assert all(same_bits(values, drawn[name]) for name, values in truncate(drawn, 1.0).items())
    assert all(not values.any() for values in truncate(drawn, 0.0).values())


def test_truncation_scales_every_latent_and_leaves_the_given_ones_alone() -> None:
    drawn = draw([NORMAL, UNIFORM], [1])
    before = {name: values.clone() for name, values in drawn.items()}
    half = truncate(drawn, 0.5)
    assert set(half) == set(drawn)
    for name, values in before.items():
        assert torch.equal(half[name], values / 2)
        assert same_bits(drawn[name], values)


# --- lerp and slerp ---------------------------------------------------------------------------------------------------------


@quick
@given(two_vectors())
def test_ends_are_exact_to_the_bit(pair: tuple[Tensor, Tensor]) -> None:
    a, b = pair
    for between in (lerp, slerp):
        assert same_bits(between(a, b, 0.0), a)
        assert same_bits(between(a, b, 1.0), b)


def test_a_negative_zero_at_an_end_keeps_its_sign() -> None:
    a, b = torch.tensor([-0.0, 1.0]), torch.tensor([1.0, -0.0])
    assert same_bits(slerp(a, b, 0.0), a)
    assert same_bits(lerp(a, b, 1.0), b)


def test_an_end_is_a_copy() -> None:
    a, b = torch.ones(3), torch.zeros(3)
    slerp(a, b, 0.0).add_(5)
    assert torch.equal(a, torch.ones(3))


@quick
@given(two_vectors(), fractions)
def test_lerp_is_the_weighted_mean_in_float64(pair: tuple[Tensor, Tensor], t: float) -> None:
    a, b = pair
    expected = [float(x) + t * (float(y) - float(x)) for x, y in zip(a, b, strict=True)]
    assert lerp(a, b, t).tolist() == pytest.approx(expected, rel=1e-6, abs=1e-6)


@quick
@given(two_vectors(), fractions)
def test_the_norm_of_slerp_goes_straight_from_end_to_end(pair: tuple[Tensor, Tensor], t: float) -> None:
    a, b = pair
    assume(a.numel() > 1)
    norm_a, norm_b = float(a.double().norm()), float(b.double().norm())
    assert float(slerp(a, b, t).double().norm()) == pytest.approx((1 - t) * norm_a + t * norm_b, rel=1e-5, abs=1e-6)


@quick
@given(two_vectors(), fractions)
def test_the_direction_of_slerp_turns_at_constant_speed(pair: tuple[Tensor, Tensor], t: float) -> None:
    a, b = pair
    assume(a.numel() > 1 and float(a.norm()) > 0.01 and float(b.norm()) > 0.01)
    point = slerp(a, b, t)
    assert angle(a, point) == pytest.approx(t * angle(a, b), abs=1e-5)
    assert angle(point, b) == pytest.approx((1 - t) * angle(a, b), abs=1e-5)


@quick
@given(two_vectors(), fractions)
def test_swapped_ends_walk_the_same_way_back(pair: tuple[Tensor, Tensor], t: float) -> None:
    a, b = pair
    for between in (lerp, slerp):
        assert between(a, b, t).tolist() == pytest.approx(between(b, a, 1 - t).tolist(), rel=1e-4, abs=1e-3)


def test_a_quarter_circle_has_the_known_middle() -> None:
    middle = slerp(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 3.0]), 0.5)
    assert middle.tolist() == pytest.approx([2 * math.sqrt(0.5), 2 * math.sqrt(0.5)])


@quick
@given(two_vectors(), st.floats(0.125, 8, width=32), fractions)
def test_parallel_vectors_take_the_straight_line(pair: tuple[Tensor, Tensor], scale: float, t: float) -> None:
    a = pair[0]
    b = a * scale
    assert slerp(a, b, t).tolist() == pytest.approx(lerp(a, b, t).tolist(), rel=1e-5, abs=1e-5)


def test_equal_vectors_stay_where_they_are_to_the_bit() -> None:
    a = draw([NORMAL], [5])["latent"][0]
    assert all(same_bits(slerp(a, a, t), a) for t in (0.1, 1 / 3, 0.5, 0.999))


@quick
@given(two_vectors(), st.floats(0.125, 8, width=32), fractions)
def test_opposite_vectors_take_half_a_circle(pair: tuple[Tensor, Tensor], scale: float, t: float) -> None:
    a = pair[0]
    assume(a.numel() > 1 and float(a.norm()) > 0.01)
    point = slerp(a, -scale * a, t)
    norm = float(a.double().norm())
    assert float(point.double().norm()) == pytest.approx((1 - t) * norm + t * scale * norm, rel=1e-5)
    assert angle(a, point) == pytest.approx(math.pi * t, abs=1e-5)
    assert same_bits(point, slerp(a, -scale * a, t))


def test_opposite_vectors_turn_through_the_most_orthogonal_axis() -> None:
    a = torch.tensor([2.0, 0.0, 0.0])
    assert slerp(a, -a, 0.5).tolist() == pytest.approx([0, 2, 0], abs=1e-6)
    assert slerp(-a, a, 0.5).tolist() == pytest.approx([0, 2, 0], abs=1e-6)


def test_the_rounding_of_opposite_vectors_does_not_choose_their_circle() -> None:
    a = draw([NORMAL], [1])["latent"][0]
    middle = slerp(a, -a, 0.5)
    for scale in (0.3, 0.7, 3.3):
        assert angle(slerp(a, -scale * a, 0.5), middle) < 1e-5


@pytest.mark.parametrize("towards", [0.0, math.pi])
def test_vectors_that_are_nearly_on_one_line_turn_in_their_own_plane(towards: float) -> None:
    a, b = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([math.cos(towards + 0.003), 0.0, math.sin(0.003)])
    point = slerp(a, b, 0.25)
    assert point[1] == 0
    assert point[2] > 0
    assert angle(a, point) == pytest.approx(angle(a, b) / 4, rel=1e-3)


def test_opposite_numbers_have_no_circle_and_take_the_straight_line() -> None:
    assert slerp(torch.tensor([2.0]), torch.tensor([-2.0]), 0.25).tolist() == [1.0]


@quick
@given(two_vectors(), fractions)
def test_a_zero_vector_takes_the_straight_line(pair: tuple[Tensor, Tensor], t: float) -> None:
    a = pair[0]
    zero = torch.zeros_like(a)
    assert torch.equal(slerp(zero, a, t), lerp(zero, a, t))
    assert torch.equal(slerp(a, zero, t), lerp(a, zero, t))
    assert not slerp(zero, zero, t).any()


def test_very_large_and_very_small_floats_give_finite_points() -> None:
    huge, tiny = torch.tensor([1e38, -1e38]), torch.tensor([1e-45, 1e-45])
    for a, b in ((huge, -huge), (huge, tiny), (tiny, -tiny)):
        assert all(bool(between(a, b, t).isfinite().all()) for between in (lerp, slerp) for t in (0.0, 0.3, 0.5, 1.0))


def test_a_tensor_of_several_axes_is_taken_as_one_vector() -> None:
    drawn = draw([UNIFORM], [1, 2])["noise"]
    point = slerp(drawn[0], drawn[1], 0.3)
    assert point.shape == (2, 4, 4)
    assert same_bits(point.flatten(), slerp(drawn[0].flatten(), drawn[1].flatten(), 0.3))


# --- path -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["slerp", "lerp"])
@pytest.mark.parametrize("steps", [0, 1, 2, 7])
def test_anchors_stand_in_a_path_bit_by_bit(method: str, steps: int) -> None:
    anchors = draw([UNIFORM], range(4))["noise"]
    anchors[2] = -anchors[1]
    walk = path(anchors, steps, method)
    assert walk.shape == (3 * (steps + 1) + 1, 2, 4, 4)
    assert same_bits(walk[:: steps + 1], anchors)


@pytest.mark.parametrize(("method", "between"), [("slerp", slerp), ("lerp", lerp)])
def test_frames_between_anchors_are_evenly_spaced(method: str, between: Callable[[Tensor, Tensor, float], Tensor]) -> None:
    anchors = draw([NORMAL], range(3))["latent"]
    walk = path(anchors, 3, method)
    for row in range(9):
        first, step = divmod(row, 4)
        if step:
            assert same_bits(walk[row], between(anchors[first], anchors[first + 1], step / 4))


def test_one_anchor_is_a_path_of_one_frame() -> None:
    anchor = draw([NORMAL], [1])["latent"]
    assert same_bits(path(anchor, 5, "slerp"), anchor)


def test_a_path_depends_on_its_neighbours_alone() -> None:
    anchors = draw([NORMAL], range(4))["latent"]
    whole, part = path(anchors, 6, "slerp"), path(anchors[1:3], 6, "slerp")
    assert same_bits(whole[7:15], part)
