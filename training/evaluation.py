"""What a run is judged by: generated images against held-out ones, in features, or pixel by pixel where each has its own target."""

import logging
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from training.contract import TrainConfig
from training.data import evenly
from training.export import HeldOut
from training.features.extractors import ClassifierFeatures, FeatureExtractor, feature_extractor
from training.metrics import (
    SSIM_WINDOW,
    FeatureStatistics,
    class_variety,
    density_coverage,
    frechet_distance,
    kernel_distance,
    mean_distance,
    mode_histogram,
    precision_recall,
    psnr,
    ssim,
    training_share,
)

MAX_COMPARED, COMPARED_SIZE = 1000, 32  # images that were trained on, and held-out ones, whether generated ones are copies; pixels
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluator:
    """Judges one run. What is computed of the held-out images alone is computed once.

    Where each image has its own target (the held-out images have a baseline), PSNR decides which state is best; else KID does.
    """

    held_out: HeldOut  # as many images as are generated, in their order
    extractor: FeatureExtractor
    trained_on: Tensor | None = None  # (M, C, H, W) in [-1, 1]; without them nobody can say whether they were memorised

    @classmethod
    def of(
        cls, config: TrainConfig, held_out: HeldOut, weights: Path, device: torch.device, trained_on: Tensor | None = None
    ) -> "Evaluator":
        """For `config.num_evaluated` of the held-out images at most.

        Args:
            weights: the folder of weights files that were put there by hand.
            trained_on: some of the images that are trained on, (M, C, H, W) in [-1, 1].

        Raises:
            UserError: the config's extractor is unknown or its weights are not to be had.
        """
        some = held_out.some(config.num_evaluated)
        extractor = feature_extractor(config.extractor, weights, device)
        _log.info("evaluating on %d held-out images with %s, sha256 %s", len(some.images), extractor.name, extractor.sha256)
        return cls(some, extractor, trained_on)

    def quick(self, generated: Tensor) -> dict[str, float]:
        """What is cheap enough to be asked for often.

        Args:
            generated: (N, C, H, W) in [-1, 1], an image for each of `held_out`.
        """
        if self._baseline is not None:
            return self._of_pairs(generated)
        features = self.extractor(generated)
        return self._of_features(features) | self._of_variety(features) | self._of_copies(generated)

    def thorough(self, generated: Tensor) -> dict[str, float]:
        """Everything, for the end of a run; see `quick`."""
        features = self.extractor(generated)
        suffix = self.extractor.suffix
        manifold = {f"{name}_{suffix}": value for name, value in density_coverage(self._real, features)._asdict().items()}
        values = self._of_features(features) | self._of_variety(features) | manifold | self._of_modes(features) | self._of_copies(generated)
        return values if self._baseline is None else values | self._of_pairs(generated)

    def chosen_by(self, values: dict[str, float]) -> float:
        """The one value by which states are compared."""
        return values[f"kid_{self.extractor.suffix}" if self._baseline is None else "psnr"]

    def is_better(self, value: float, than: float) -> bool:
        """Whether a state of this value should be published rather than that of the other."""
        return value < than if self._baseline is None else value > than

    @property
    def _baseline(self) -> Tensor | None:
        return self.held_out.given.baseline

    @cached_property
    def _real(self) -> Tensor:
        return self.extractor(self.held_out.images)

    @cached_property
    def _real_statistics(self) -> FeatureStatistics:
        return FeatureStatistics.of(self._real)

    @cached_property
    def _baseline_values(self) -> dict[str, float]:
        """Of what a user would have without the model."""
        if self._baseline is None:
            return {}
        return {f"{name}_baseline": value for name, value in self._pixelwise(self._baseline).items()}

    def _of_features(self, features: Tensor) -> dict[str, float]:
        suffix = self.extractor.suffix
        kernel = kernel_distance(self._real, features)
        return {
            f"kid_{suffix}": kernel.value,
            f"kid_{suffix}_low": kernel.low,
            f"kid_{suffix}_high": kernel.high,
            self.extractor.frechet: frechet_distance(self._real_statistics, FeatureStatistics.of(features)),
        }

    def _of_variety(self, features: Tensor) -> dict[str, float]:
        """How various generated images are beside real ones."""
        values = {"diversity": mean_distance(features) / self._real_distance, **precision_recall(self._real, features)._asdict()}
        if isinstance(network := self.extractor.network, ClassifierFeatures):
            values["class_variety"] = class_variety(network.classes(features), network.classes(self._real))
        named = {f"{name}_{self.extractor.suffix}": value for name, value in values.items()}
        return named | {"num_evaluated": float(len(features))}

    def _of_copies(self, generated: Tensor) -> dict[str, float]:
        """Whether generated images are copies, in pixels: a copy with some noise is far from its original in features."""
        if self._compared is None:
            return {}
        found = training_share(_small(generated), *self._compared)
        return {"training_share": found.share, "training_share_error": found.error}

    @cached_property
    def _real_distance(self) -> float:
        return mean_distance(self._real)

    @cached_property
    def _compared(self) -> tuple[Tensor, Tensor] | None:
        """Small images that were trained on, and as many held-out ones, all different; None where there are none."""
        if self.trained_on is None:
            return None
        trained_on, held_out = _different(self.trained_on), _different(self.held_out.images)
        count = min(len(trained_on), len(held_out), MAX_COMPARED)
        return _small(self.trained_on[evenly(trained_on, count)]), _small(self.held_out.images[evenly(held_out, count)])

    def _of_modes(self, features: Tensor) -> dict[str, float]:
        """Where the extractor is a classifier: how many classes are made, and how unlike the held-out images' their shares are."""
        if not isinstance(self.extractor.network, ClassifierFeatures):
            return {}
        named, real = self.extractor.network.classes(features), self.extractor.network.classes(self._real)
        found = mode_histogram(named, torch.bincount(real, minlength=self.extractor.network.num_classes))
        values = {"modes": float(found.num_modes), "mode_divergence": found.divergence}
        return {f"{name}_{self.extractor.suffix}": value for name, value in values.items() if math.isfinite(value)}

    def _of_pairs(self, generated: Tensor) -> dict[str, float]:
        return self._pixelwise(generated) | self._baseline_values

    def _pixelwise(self, images: Tensor) -> dict[str, float]:
        targets = self.held_out.images
        values = {"psnr": psnr(images, targets)}
        if min(targets.shape[-2:]) >= SSIM_WINDOW:
            values["ssim"] = ssim(images, targets)
        return values


def _different(images: Tensor) -> Tensor:
    """(M,) int64, ascending: the rows of images that equal none before them. A set of many copies has fewer places to be near to."""
    first: dict[bytes, int] = {}
    for row, image in enumerate(images.numpy()):
        first.setdefault(image.tobytes(), row)
    return torch.tensor(list(first.values()), dtype=torch.int64)


def _small(images: Tensor) -> Tensor:
    """(N, D): the pixels of images of at most COMPARED_SIZE a side, averaged."""
    height, width = (min(size, COMPARED_SIZE) for size in images.shape[-2:])
    return F.adaptive_avg_pool2d(images.cpu().clamp(-1, 1), (height, width)).flatten(1)
