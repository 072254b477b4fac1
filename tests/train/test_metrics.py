import itertools
import math
import random

import pytest
import torch
from torch import Tensor
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure
from torchmetrics.image.kid import poly_mmd

from training import metrics
from training.metrics import (
    FeatureStatistics,
    density_coverage,
    frechet_distance,
    kernel_distance,
    mode_histogram,
    precision_recall,
    psnr,
    ssim,
)


def normal(num_rows: int, dimension: int, seed: int) -> Tensor:
    return torch.randn(num_rows, dimension, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def skewed(num_rows: int, dimension: int, seed: int) -> Tensor:
    """Rows with correlated features that are never negative, as a network's are."""
    return (normal(num_rows, dimension, seed) @ normal(dimension, dimension, 99) / dimension**0.5 + 0.3).relu()


def distance(first: Tensor, second: Tensor) -> float:
    return frechet_distance(FeatureStatistics.of(first), FeatureStatistics.of(second))


# --- Frechet distance ---------------------------------------------------------------------------------------------------------


def test_statistics_of_parts_are_those_of_the_whole() -> None:
    rows = skewed(500, 12, 0) + 40.0
    statistics = FeatureStatistics(12)
    for part in torch.split(rows, 7):
        statistics.add(part.float())
    assert statistics.num_rows == 500
    assert torch.allclose(statistics.mean, rows.float().double().mean(0), rtol=1e-12)
    assert torch.allclose(statistics.covariance, rows.float().double().T.cov(), rtol=1e-9, atol=1e-12)


def test_a_covariance_of_one_row_is_refused() -> None:
    with pytest.raises(ValueError, match="2 rows at least; there are 1"):
        _ = FeatureStatistics.of(torch.zeros(1, 3)).covariance


def test_the_frechet_distance_of_equal_features_is_nothing() -> None:
    rows = skewed(60, 100, 0)  # fewer rows than features: the covariance is singular
    assert 0 <= distance(rows, rows) < 1e-5


def test_the_frechet_distance_of_moved_features_is_how_far_they_moved() -> None:
    rows = normal(200, 8, 0)
    step = torch.arange(8, dtype=torch.float64)
    assert distance(rows, rows + step) == pytest.approx(float(step.square().sum()), rel=1e-9)


def test_the_frechet_distance_of_scaled_features_is_that_of_their_deviations() -> None:
    rows = normal(200, 8, 0)
    rows -= rows.mean(0)
    by_hand = float(rows.T.cov().trace()) * (3 - 1) ** 2  # (s1 - s2)^2 along every axis
    assert distance(rows, 3 * rows) == pytest.approx(by_hand, rel=1e-9)


def test_the_frechet_distance_is_torch_fidelitys() -> None:
    first, second = skewed(300, 40, 1), 1.2 * skewed(250, 40, 2) + 0.1
    theirs = fid_statistics_to_metric(fid_features_to_statistics(first), fid_features_to_statistics(second), verbose=False)
    assert distance(first, second) == pytest.approx(theirs["frechet_inception_distance"], rel=1e-6)
    assert distance(second, first) == pytest.approx(distance(first, second), rel=1e-9)


# --- kernel distance ----------------------------------------------------------------------------------------------------------


def kernel_by_hand(first: list[list[float]], second: list[list[float]]) -> float:
    def kernel(a: list[float], b: list[float]) -> float:
        return (sum(x * y for x, y in zip(a, b, strict=True)) / len(a) + 1) ** 3

    def among(rows: list[list[float]]) -> float:
        pairs = [kernel(a, b) for i, a in enumerate(rows) for j, b in enumerate(rows) if i != j]
        return sum(pairs) / len(pairs)

    between = [kernel(a, b) for a in first for b in second]
    return among(first) + among(second) - 2 * sum(between) / len(between)


def test_the_kernel_distance_and_its_interval_are_what_the_definition_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "BLOCK_ROWS", 4)  # so that nine rows are three blocks
    first, second = skewed(9, 3, 1), skewed(6, 3, 2)
    found = kernel_distance(first, second)
    rows, others = first.tolist(), second.tolist()
    assert found.value == pytest.approx(kernel_by_hand(rows, others), rel=1e-12)
    less_first = torch.tensor([kernel_by_hand(rows[:i] + rows[i + 1 :], others) for i in range(9)], dtype=torch.float64)
    less_second = torch.tensor([kernel_by_hand(rows, others[:i] + others[i + 1 :]) for i in range(6)], dtype=torch.float64)
    jackknife = sum(float(less.sub(less.mean()).square().sum()) * (len(less) - 1) / len(less) for less in (less_first, less_second))
    assert found.high - found.value == pytest.approx(1.96 * math.sqrt(jackknife), rel=1e-9)
    assert found.value - found.low == pytest.approx(1.96 * math.sqrt(jackknife), rel=1e-9)


def test_the_kernel_distance_is_torch_fidelitys_and_torchmetrics() -> None:
    first, second = skewed(200, 40, 1), 1.2 * skewed(200, 40, 2)
    found = kernel_distance(first, second).value
    theirs = kid_features_to_metric(first, second, kid_subsets=1, kid_subset_size=200, verbose=False)
    assert found == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-6)
    assert found == pytest.approx(float(poly_mmd(first, second)), rel=1e-6)


def test_the_kernel_distance_of_one_distribution_is_nothing_on_average_and_within_its_interval() -> None:
    found = [kernel_distance(normal(60, 10, seed), normal(60, 10, 1000 + seed)) for seed in range(60)]
    values = torch.tensor([one.value for one in found])
    assert values.min() < 0 < values.max()
    assert abs(float(values.mean())) < 3 * float(values.std()) / math.sqrt(60)
    assert sum(one.low <= 0 <= one.high for one in found) >= 54


def test_a_kernel_distance_of_two_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="3 rows of each at least; there are 5 and 2"):
        kernel_distance(normal(5, 3, 0), normal(2, 3, 0))


# --- neighbourhoods -----------------------------------------------------------------------------------------------------------


def neighbourhoods_by_hand(real: list[list[float]], fake: list[list[float]], k: int) -> dict[str, float]:
    def radius(row: list[float], rows: list[list[float]]) -> float:
        return sorted(math.dist(row, other) for other in rows)[k]  # the first is the row itself

    def is_inside(row: list[float], centre: list[float], rows: list[list[float]]) -> bool:
        return math.dist(row, centre) <= radius(centre, rows)

    return {
        "precision": sum(any(is_inside(row, centre, real) for centre in real) for row in fake) / len(fake),
        "recall": sum(any(is_inside(row, centre, fake) for centre in fake) for row in real) / len(real),
        "density": sum(is_inside(row, centre, real) for centre in real for row in fake) / (k * len(fake)),
        "coverage": sum(any(is_inside(row, centre, real) for row in fake) for centre in real) / len(real),
    }


@pytest.mark.parametrize("k", [1, 3, 5])
def test_precision_recall_density_and_coverage_are_what_the_definitions_say(monkeypatch: pytest.MonkeyPatch, k: int) -> None:
    monkeypatch.setattr(metrics, "BLOCK_ROWS", 7)
    dice = random.Random(k)  # noqa: S311
    # on a grid, so that many distances are equal and a radius is often met exactly
    real = [[float(dice.randrange(6)), float(dice.randrange(6))] for _ in range(30)]
    fake = [[float(dice.randrange(3, 9)), float(dice.randrange(6))] for _ in range(20)]
    found = precision_recall(torch.tensor(real), torch.tensor(fake), k)._asdict()
    found |= density_coverage(torch.tensor(real), torch.tensor(fake), k)._asdict()
    assert found == pytest.approx(neighbourhoods_by_hand(real, fake, k), rel=1e-12)
    assert 0 < found["precision"] < 1
    assert 0 < found["recall"] < 1


def test_precision_and_recall_are_torch_fidelitys() -> None:
    real, fake = skewed(300, 20, 1), 0.9 * skewed(200, 20, 2)
    theirs = prc_features_to_metric(fake, real, prc_neighborhood=3, prc_batch_size=100, save_cpu_ram=False, verbose=False)
    found = precision_recall(real, fake)
    assert found.precision == pytest.approx(theirs["precision"], rel=1e-6)
    assert found.recall == pytest.approx(theirs["recall"], rel=1e-6)


def test_density_and_coverage_of_one_distribution_are_the_expected_ones() -> None:
    num_rows, k = 300, 5
    found = [density_coverage(normal(num_rows, 6, seed), normal(num_rows, 6, 1000 + seed), k) for seed in range(30)]
    # a generated row is as likely as any other real one to be among the k nearest
    assert sum(one.density for one in found) / 30 == pytest.approx(1, abs=0.03)
    missed = math.prod((num_rows - i) / (2 * num_rows - i) for i in range(1, k + 1))  # Naeem et al. 2020, section 3.3
    assert sum(one.coverage for one in found) / 30 == pytest.approx(1 - missed, abs=0.01)


def test_a_dropped_mode_lowers_recall_and_coverage_alone() -> None:
    centres = 20 * normal(10, 8, 3)
    real = torch.cat([centre + normal(50, 8, seed) for seed, centre in enumerate(centres)])
    fake = torch.cat([centre + normal(50, 8, 100 + seed) for seed, centre in enumerate(centres[:5])])
    assert precision_recall(real, fake).precision > 0.8
    assert precision_recall(real, fake).recall < 0.6
    assert density_coverage(real, fake).coverage < 0.6


def test_too_few_rows_for_the_neighbours_are_refused() -> None:
    with pytest.raises(ValueError, match="5 neighbours need 6 rows at least; there are 5"):
        density_coverage(normal(5, 3, 0), normal(9, 3, 0))


# --- modes --------------------------------------------------------------------------------------------------------------------


def test_modes_are_counted_and_compared_with_those_of_real_images() -> None:
    predictions = torch.tensor([0] * 150 + [1] * 49 + [2])
    found = mode_histogram(predictions, torch.tensor([50, 50, 50, 50]))
    assert found.counts == (150, 49, 1, 0)
    assert found.num_modes == 2
    by_hand = sum(count / 200 * math.log(count / 200 / 0.25) for count in (150, 49, 1))
    assert found.divergence == pytest.approx(by_hand, rel=1e-12)


def test_equal_shares_do_not_diverge_and_an_unheard_of_class_diverges_without_end() -> None:
    assert mode_histogram(torch.tensor([0, 1, 1]), torch.tensor([100, 200])).divergence == 0
    assert mode_histogram(torch.tensor([0, 1]), torch.tensor([100, 0])).divergence == math.inf


# --- pairs of images ----------------------------------------------------------------------------------------------------------


def pair(*shape: int) -> tuple[Tensor, Tensor]:
    references = torch.rand(*shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    noise = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    return references + 0.2 * noise * torch.arange(1, shape[0] + 1).view(-1, 1, 1, 1), references


def test_psnr_is_the_mean_over_images_of_a_peak_of_two() -> None:
    images, references = pair(3, 2, 6, 5)
    errors = [float((image.clamp(-1, 1) - reference).square().mean()) for image, reference in zip(images, references, strict=True)]
    assert psnr(images, references) == pytest.approx(sum(10 * math.log10(4 / error) for error in errors) / 3, rel=1e-6)
    theirs = peak_signal_noise_ratio(images.clamp(-1, 1), references, data_range=2.0, dim=(1, 2, 3), reduction="elementwise_mean")
    assert psnr(images, references) == pytest.approx(float(theirs), rel=1e-5)
    assert psnr(references, references) == 100


def test_ssim_is_torchmetrics_where_windows_lie_inside() -> None:
    images, references = pair(3, 2, 24, 20)
    images = images.clamp(-1, 1)
    _, everywhere = structural_similarity_index_measure(images.double(), references.double(), data_range=2.0, return_full_image=True)
    assert ssim(images, references) == pytest.approx(float(everywhere[:, :, 5:-5, 5:-5].mean()), rel=1e-6)
    assert ssim(references, references) == pytest.approx(1, rel=1e-12)


def test_ssim_of_two_flat_images_is_that_of_their_means() -> None:
    first, second = torch.full((1, 1, 11, 11), 0.5), torch.full((1, 1, 11, 11), -0.1)
    steady = (0.01 * 2) ** 2
    assert ssim(first, second) == pytest.approx((2 * 0.5 * -0.1 + steady) / (0.5**2 + 0.1**2 + steady), rel=1e-6)


def test_ssim_of_images_without_room_for_a_window_is_refused() -> None:
    with pytest.raises(ValueError, match="11 x 11 at least; these are 10 x 20"):
        ssim(torch.zeros(1, 1, 10, 20), torch.zeros(1, 1, 10, 20))


# --- variety and memory ---------------------------------------------------------------------------------------------------------


def test_the_mean_distance_is_over_all_pairs_of_different_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 4.0]])
    monkeypatch.setattr(metrics, "BLOCK_ROWS", 2)
    assert metrics.mean_distance(rows) == pytest.approx((5 + 4 + 3) / 3)
    assert metrics.mean_distance(rows[:1].repeat(5, 1)) == 0
    with pytest.raises(ValueError, match="a distance needs 2 rows at least; there are 1"):
        metrics.mean_distance(rows[:1])


def test_the_share_of_rows_nearest_to_trained_ones_and_its_error_are_what_lots_would_give() -> None:
    trained_on, held_out = torch.tensor([[0.0], [10.0], [20.0]]), torch.tensor([[5.0], [15.0], [25.0]])
    generated = torch.tensor([[0.1], [0.2], [9.0], [21.0], [16.0]])  # nearest: 0, 0, 10, 20, 15
    found = metrics.training_share(generated, trained_on, held_out)
    drawn = torch.tensor([2.0, 1.0, 1.0, 0.0, 1.0, 0.0], dtype=torch.float64) / 5
    shares = torch.tensor([float(drawn[list(half)].sum()) for half in itertools.combinations(range(6), 3)])
    assert found.share == pytest.approx(0.8)
    assert found.error == pytest.approx(float(shares.std(correction=0)))
    assert float(shares.mean()) == pytest.approx(0.5)


def test_many_rows_near_one_are_no_more_sure_than_one() -> None:
    rows = torch.arange(40.0)[:, None]
    found = metrics.training_share(torch.full((1000, 1), 0.1), rows[::2], rows[1::2])
    assert found == (1.0, pytest.approx(0.5))
    with pytest.raises(ValueError, match="the two sets of real rows are equally large; these have 20 and 19"):
        metrics.training_share(rows, rows[::2], rows[3::2])


def test_class_variety_is_one_of_equal_shares_and_less_of_fewer_classes() -> None:
    reference = torch.arange(10).repeat(5)
    assert metrics.class_variety(reference, reference) == pytest.approx(1)
    assert metrics.class_variety(torch.tensor([3, 3, 7, 7]), reference) == pytest.approx(0.2)
    assert metrics.class_variety(torch.tensor([3, 3, 3]), reference) == pytest.approx(0.1)
