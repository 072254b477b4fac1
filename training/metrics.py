"""Measures of how well generated images match real ones: pure functions of features, of predicted classes, or of pairs of images.

Features are (N, D) tensors of any extractor, one row an image; everything is computed in float64. A measure of features means little
without the extractor's name, which is part of the measure's name wherever it is reported.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK_ROWS = 1024  # of a matrix of all pairs: 10,000 x 10,000 float64 would be 800 MB
PEAK = 2.0  # the largest difference of two values in [-1, 1]
MAX_PSNR_DECIBELS = 100.0
SSIM_WINDOW, SSIM_SIGMA = 11, 1.5  # pixels


# --- Frechet distance ---------------------------------------------------------------------------------------------------------


class FeatureStatistics:
    """Mean and covariance of features that come in parts, in memory that does not grow with their number."""

    def __init__(self, dimension: int) -> None:
        self.num_rows = 0
        self._sum = torch.zeros(dimension, dtype=torch.float64)
        self._products = torch.zeros(dimension, dimension, dtype=torch.float64)

    @classmethod
    def of(cls, features: Tensor) -> "FeatureStatistics":
        statistics = cls(features.shape[1])
        statistics.add(features)
        return statistics

    def add(self, features: Tensor) -> None:
        rows = features.to("cpu", torch.float64)
        self.num_rows += len(rows)
        self._sum += rows.sum(0)
        self._products += rows.T @ rows

    @property
    def mean(self) -> Tensor:
        """(D,)."""
        return self._sum / self.num_rows

    @property
    def covariance(self) -> Tensor:
        """(D, D), unbiased: divided by the number of rows less one, of which there are two at least."""
        if self.num_rows < 2:
            raise ValueError(f"a covariance needs 2 rows at least; there are {self.num_rows}")
        return (self._products - torch.outer(self._sum, self._sum) / self.num_rows) / (self.num_rows - 1)


def frechet_distance(first: FeatureStatistics, second: FeatureStatistics) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), never negative.

    It is biased upwards where rows are few, so only distances of equally many rows compare.

    Source: Dowson and Landau 1982, J. Multivariate Analysis 12(3), equation 4; for images Heusel et al. 2017, arXiv:1706.08500, equation 6.
    """
    covariance, other = first.covariance, second.covariance
    # C1 C2 has the eigenvalues of sqrt(C1) C2 sqrt(C1), which is symmetric: no complex part, no iteration that may not converge
    values, vectors = torch.linalg.eigh(covariance)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ other @ root).clamp(min=0).sqrt().sum()
    distance = (first.mean - second.mean).square().sum() + covariance.trace() + other.trace() - 2 * cross
    return max(0.0, float(distance))


# --- kernel distance ----------------------------------------------------------------------------------------------------------


class KernelDistance(NamedTuple):
    """`value` is unbiased, so it may be negative where the two distributions are the same; [low, high] is its 95 % interval."""

    value: float
    low: float
    high: float


def kernel_distance(real: Tensor, fake: Tensor) -> KernelDistance:
    """Squared maximum mean discrepancy under the kernel (x y / D + 1)^3, the unbiased estimate from all pairs.

    All rows are used at once, which has less noise than a mean over random subsets and needs no random choice. The interval is
    the delete-one jackknife's of two samples.

    Args:
        real, fake: (N, D) and (M, D), three rows at least each.

    Source: Binkowski et al. 2018, arXiv:1801.01401, section 4; jackknife: Efron and Stein 1981, Annals of Statistics 9(3).
    """
    real, fake = real.to("cpu", torch.float64), fake.to("cpu", torch.float64)
    among_real, among_fake, between_real, between_fake = _kernel_sums(real, fake)
    num_real, num_fake = len(real), len(fake)
    if min(num_real, num_fake) < 3:
        raise ValueError(f"a kernel distance needs 3 rows of each at least; there are {num_real} and {num_fake}")
    total_real, total_fake, total = among_real.sum(), among_fake.sum(), between_real.sum()
    inner_real, inner_fake = total_real / (num_real * (num_real - 1)), total_fake / (num_fake * (num_fake - 1))
    value = inner_real + inner_fake - 2 * total / (num_real * num_fake)
    # the estimate without each row in turn
    less_real = (total_real - 2 * among_real) / ((num_real - 1) * (num_real - 2)) - 2 * (total - between_real) / ((num_real - 1) * num_fake)
    less_fake = (total_fake - 2 * among_fake) / ((num_fake - 1) * (num_fake - 2)) - 2 * (total - between_fake) / ((num_fake - 1) * num_real)
    variance = sum((len(less) - 1) * less.var(correction=0) for less in (less_real, less_fake))
    half = 1.96 * float(variance) ** 0.5
    return KernelDistance(float(value), float(value) - half, float(value) + half)


def _kernel_sums(real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sums of the kernel for each row: with the other real rows, other fake rows; of each real row with all fake ones, and the reverse."""

    def kernel(first: Tensor, second: Tensor) -> Tensor:
        return (first @ second.T / real.shape[1] + 1) ** 3

    def among(rows: Tensor) -> Tensor:
        sums = torch.cat([kernel(block, rows).sum(1) for block in torch.split(rows, BLOCK_ROWS)])
        return sums - (rows.square().sum(1) / rows.shape[1] + 1) ** 3

    between_real, between_fake = [], torch.zeros(len(fake), dtype=torch.float64)
    for block in torch.split(real, BLOCK_ROWS):
        values = kernel(block, fake)
        between_real.append(values.sum(1))
        between_fake += values.sum(0)
    return among(real), among(fake), torch.cat(between_real), between_fake


# --- neighbourhoods -----------------------------------------------------------------------------------------------------------


class PrecisionRecall(NamedTuple):
    """`precision`: the share of generated images that lie among real ones; `recall`: of real images that lie among generated ones."""

    precision: float
    recall: float


def precision_recall(real: Tensor, fake: Tensor, num_neighbours: int = 3) -> PrecisionRecall:
    """A row lies among others where it is no farther from one of them than that one's k-th nearest neighbour of its own kind.

    Source: Kynkaanniemi et al. 2019, arXiv:1904.06991, equations 1 and 2.
    """
    real, fake = real.to("cpu", torch.float64), fake.to("cpu", torch.float64)
    return PrecisionRecall(_share_inside(fake, real, num_neighbours), _share_inside(real, fake, num_neighbours))


class DensityCoverage(NamedTuple):
    """`density`: in how many real images' neighbourhoods a generated one lies, over k; 1 is expected of real images, and it may be more.

    `coverage`: the share of real images with a generated one in their neighbourhood, which falls where modes are dropped.
    """

    density: float
    coverage: float


def density_coverage(real: Tensor, fake: Tensor, num_neighbours: int = 5) -> DensityCoverage:
    """Only real rows have neighbourhoods, so that one odd generated row cannot feign a wide manifold.

    Source: Naeem et al. 2020, arXiv:2002.09797, equations 4 and 5.
    """
    real, fake = real.to("cpu", torch.float64), fake.to("cpu", torch.float64)
    radii = _squared_radii(real, num_neighbours)
    num_inside, covered = 0, torch.zeros(len(real), dtype=torch.bool)
    for block in torch.split(fake, BLOCK_ROWS):
        inside = _squared_distances(block, real) <= radii
        num_inside += int(inside.sum())
        covered |= inside.any(0)
    return DensityCoverage(num_inside / (num_neighbours * len(fake)), float(covered.double().mean()))


def mean_distance(rows: Tensor) -> float:
    """Mean Euclidean distance of two different rows, over all pairs: how much images differ from each other."""
    rows = rows.to("cpu", torch.float64)
    if len(rows) < 2:
        raise ValueError(f"a distance needs 2 rows at least; there are {len(rows)}")
    total = sum(float(_squared_distances(block, rows).sqrt().sum()) for block in torch.split(rows, BLOCK_ROWS))
    return total / (len(rows) * (len(rows) - 1))


class TrainingShare(NamedTuple):
    """`share` of generated rows whose nearest real row is one that was trained on; half is expected where nothing was memorised.

    `error` is its standard error then.
    """

    share: float
    error: float


def training_share(generated: Tensor, trained_on: Tensor, held_out: Tensor) -> TrainingShare:
    """Which of two equally large sets of real rows generated ones are nearest to.

    What is held out is chosen by lot, so that without memory each real row is one that was trained on by the toss of a coin, and the
    share's variance is that of a sum over real rows, each weighted by how many generated ones it draws: a row that draws many counts once.

    Args:
        trained_on, held_out: (M, D) each, all rows different.
    """
    if len(trained_on) != len(held_out):
        raise ValueError(f"the two sets of real rows are equally large; these have {len(trained_on)} and {len(held_out)}")
    generated, real = generated.to("cpu", torch.float64), torch.cat([trained_on, held_out]).to("cpu", torch.float64)
    nearest = torch.cat([_squared_distances(block, real).argmin(1) for block in torch.split(generated, BLOCK_ROWS)])
    share = float((nearest < len(trained_on)).double().mean())
    drawn = torch.bincount(nearest, minlength=len(real)).double() / len(generated)
    # of a sum over half of the rows, drawn without putting back
    variance = (float(drawn.square().sum()) - 1 / len(real)) * len(real) / (4 * (len(real) - 1))
    return TrainingShare(share, max(0.0, variance) ** 0.5)


def _share_inside(rows: Tensor, others: Tensor, num_neighbours: int) -> float:
    radii = _squared_radii(others, num_neighbours)
    inside = [(_squared_distances(block, others) <= radii).any(1) for block in torch.split(rows, BLOCK_ROWS)]
    return float(torch.cat(inside).double().mean())


def _squared_radii(rows: Tensor, num_neighbours: int) -> Tensor:
    """(N,): squared distance of each row to its k-th nearest other row."""
    if len(rows) <= num_neighbours:
        raise ValueError(f"{num_neighbours} neighbours need {num_neighbours + 1} rows at least; there are {len(rows)}")
    # the nearest row of all is the row itself
    blocks = torch.split(rows, BLOCK_ROWS)
    return torch.cat([_squared_distances(block, rows).kthvalue(num_neighbours + 1).values for block in blocks])


def _squared_distances(first: Tensor, second: Tensor) -> Tensor:
    squares = first.square().sum(1)[:, None] + second.square().sum(1) - 2 * first @ second.T
    return squares.clamp(min=0)


# --- modes --------------------------------------------------------------------------------------------------------------------


class ModeHistogram(NamedTuple):
    """`counts` of each class; `num_modes` with 1 % of the images at least; `divergence` KL(counts || reference) in nats.

    The divergence is infinite where a class occurs that the reference lacks.
    """

    counts: tuple[int, ...]
    num_modes: int
    divergence: float


def mode_histogram(predictions: Tensor, reference: Tensor) -> ModeHistogram:
    """Which classes a generator makes, as a classifier sees them.

    Args:
        predictions: (N,) int64, the classes of generated images.
        reference: (K,), how often each class is among real images.
    """
    counts = torch.bincount(predictions.cpu(), minlength=len(reference))
    shares = counts.double() / counts.sum()
    expected = reference.to("cpu", torch.float64) / reference.sum()
    there = shares > 0
    divergence = float((shares[there] * (shares[there] / expected[there]).log()).sum())
    return ModeHistogram(tuple(counts.tolist()), int((shares >= 0.01).sum()), max(0.0, divergence))


def class_variety(predictions: Tensor, reference: Tensor) -> float:
    """How many classes there are as good as, relative to the reference: exp(entropy - entropy of the reference).

    Args:
        predictions, reference: (N,) and (M,) int64, the classes of generated and of real images.
    """

    def entropy(classes: Tensor) -> float:
        shares = torch.bincount(classes.cpu()).double() / len(classes)
        return -float(torch.xlogy(shares, shares).sum())

    return math.exp(entropy(predictions) - entropy(reference))


# --- pairs of images ----------------------------------------------------------------------------------------------------------


def psnr(images: Tensor, references: Tensor) -> float:
    """Peak signal-to-noise ratio in decibels, the mean over images; MAX_PSNR_DECIBELS where an image is its reference.

    Args:
        images, references: (N, C, H, W) in [-1, 1]; images are clamped to it, and not rounded to 8 bits. All channels and pixels count:
            no border is cut off, no luma taken.
    """
    errors = (images.double().clamp(-1, 1) - references.double()).square().mean((1, 2, 3))
    return float((10 * torch.log10(PEAK**2 / errors)).clamp(max=MAX_PSNR_DECIBELS).mean())


def ssim(images: Tensor, references: Tensor) -> float:
    """Structural similarity, the mean over images, channels and windows that lie wholly inside; 1 where the images are equal.

    Args:
        images, references: (N, C, H, W) in [-1, 1], H and W 11 at least; images are clamped to the range.

    Source: Wang et al. 2004, IEEE Transactions on Image Processing 13(4), equation 13: Gaussian window 11, sigma 1.5, K1 0.01, K2 0.03.
    """
    if min(images.shape[-2:]) < SSIM_WINDOW:
        raise ValueError(f"SSIM needs images of {SSIM_WINDOW} x {SSIM_WINDOW} at least; these are {images.shape[-2]} x {images.shape[-1]}")
    first, second = images.double().clamp(-1, 1), references.double()
    steady_mean, steady_variance = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2
    mean, other = _windowed(first), _windowed(second)
    variance, other_variance = _windowed(first * first) - mean * mean, _windowed(second * second) - other * other
    covariance = _windowed(first * second) - mean * other
    alike = (2 * mean * other + steady_mean) * (2 * covariance + steady_variance)
    apart = (mean * mean + other * other + steady_mean) * (variance + other_variance + steady_variance)
    return float((alike / apart).mean())


def _windowed(images: Tensor) -> Tensor:
    """Weighted means over every Gaussian window that lies wholly inside."""
    offsets = torch.arange(SSIM_WINDOW, dtype=torch.float64, device=images.device) - SSIM_WINDOW // 2
    weights = torch.exp(-(offsets**2) / (2 * SSIM_SIGMA**2))
    weights /= weights.sum()
    planes = images.flatten(0, 1)[:, None]
    rows = F.conv2d(planes, weights[None, None, :, None])
    return F.conv2d(rows, weights[None, None, None, :])
