"""Feature extractors by name. What is measured with one is named after it, since no other's numbers compare."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.classifier import Classifier, load_classifier, read_card
from training.contract import UserError
from training.features import EXTRACTORS
from training.features.efficientnet import NUM_FEATURES, EfficientNetLite0, weights_file
from training.features.inception import InceptionV3
from training.files.directories import sha256_of

NUM_AT_ONCE = 50  # images
EFFICIENTNET_SIZE = 64  # pixels a side


@dataclass(frozen=True)
class FeatureExtractor:
    """Images to features, each image by itself.

    name: one of `EXTRACTORS`; sha256: of the file of weights; network: frozen, on the device.
    """

    name: str
    sha256: str
    network: nn.Module
    device: torch.device

    @property
    def suffix(self) -> str:
        """The name as it ends the names of measures."""
        return self.name.replace("-", "_")

    @property
    def frechet(self) -> str:
        """What the Frechet distance of these features is called; "fid" is the word for one network's alone."""
        is_the_fids = isinstance(self.network, InceptionV3) and self.network.is_the_fids
        return "fid" if is_the_fids else f"fd_{self.suffix}"

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """(N, D) float32 on the CPU, of images (N, 1 or 3, H, W) in [-1, 1]; values outside are clamped."""
        parts = [self.network(part.to(self.device, torch.float32).clamp(-1, 1)).cpu() for part in torch.split(images, NUM_AT_ONCE)]
        return torch.cat(parts)


def feature_extractor(name: str, weights: Path, device: torch.device) -> FeatureExtractor:
    """An extractor, ready to use.

    Args:
        weights: the folder of weights files that were put there by hand.

    Raises:
        UserError: there is no extractor of this name, or its weights are not to be had here.
    """
    if name not in EXTRACTORS:
        raise UserError(f"there is no feature extractor {ascii(name)[:80]}; there are: {', '.join(EXTRACTORS)}")
    if name == "efficientnet-lite0":
        efficientnet = EfficientNetFeatures().to(device)
        return FeatureExtractor(name, sha256_of(weights_file()), efficientnet, device)
    if name == "inception-v3":
        inception = InceptionV3(weights).to(device)
        return FeatureExtractor(name, inception.sha256, inception, device)
    return FeatureExtractor(name, read_card(name).weights.sha256, ClassifierFeatures(name).to(device), device)


class EfficientNetFeatures(nn.Module):
    """320 pooled features of images that are resized to 64 x 64, bicubic and antialiased; each image's have mean square 1.

    All of this is part of what the name means, and was chosen on images of clothes made worse in a dozen ways, on one core. 320 features
    have a covariance of full rank from 321 images on; the 1280 after the head tell worse images no better apart. At 96 pixels a side
    half of the images tell as much, and each takes twice the time. Without the scaling a few images of large features make most of the
    kernel distance's noise.
    """

    def __init__(self) -> None:
        super().__init__()
        self.network = EfficientNetLite0.pretrained()

    def forward(self, images: Tensor) -> Tensor:
        size = (EFFICIENTNET_SIZE, EFFICIENTNET_SIZE)
        resized = F.interpolate(images.expand(-1, 3, -1, -1), size, mode="bicubic", antialias=True, align_corners=False)
        scaled: Tensor = F.normalize(self.network.pooled(resized.clamp(-1, 1))) * math.sqrt(NUM_FEATURES)
        return scaled


class ClassifierFeatures(nn.Module):
    """The features of a committed classifier."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.classifier: Classifier = load_classifier(name)

    @property
    def num_classes(self) -> int:
        return self.classifier.head.out_features

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier.features(images)

    @torch.inference_mode()
    def classes(self, features: Tensor) -> Tensor:
        """(N,) int64 on the CPU, the likeliest class of each row."""
        logits: Tensor = self.classifier.head(features.to(self.classifier.head.weight.device))
        return logits.argmax(1).cpu()
