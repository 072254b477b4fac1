"""Inception as the FID is defined on: the network and the resizing are torch-fidelity's, the weights a file at hand.

Source: Heusel et al. 2017, arXiv:1706.08500; the 2048 features before the classes of TensorFlow's Inception of 2015-12-05.
"""

import importlib.util
from pathlib import Path

import torch
from torch import Tensor, nn

from training.contract import UserError
from training.features import BY_HAND
from training.features.weights import check_fits, read_weights
from training.files.directories import sha256_of

NUM_FEATURES, NUM_CLASSES = 2048, 1008
WHAT = "TensorFlow's Inception of 2015-12-05 as a state dict (pt_inception-2015-12-05-6726825d.pth)"
FID_SHA256 = "6726825d"  # begins the hash of the weights that the FID is defined on; by its habit torch names a file by it


class InceptionV3(nn.Module):
    """2048 features of images (N, 1 or 3, H, W) in [-1, 1], which are rounded to 8 bits first, as the FID's are."""

    def __init__(self, folder: Path) -> None:
        """With `inception-v3.pth` of the folder.

        Raises:
            UserError: there is no such file, it holds something else, or torch-fidelity is not installed.
        """
        super().__init__()
        path = folder / BY_HAND["inception-v3"]
        # theirs would run what a file says; one that is read here holds tensors and nothing else
        found = read_weights(path, WHAT)
        check_fits(found, {"fc.weight": torch.empty(NUM_CLASSES, NUM_FEATURES)}, path, WHAT)
        if importlib.util.find_spec("torch_fidelity") is None:
            raise UserError("the extractor 'inception-v3' needs the package torch-fidelity; install it by: pip install 'ganserve[fid]'")
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        try:
            self.network = FeatureExtractorInceptionV3("inception", [str(NUM_FEATURES)], str(path))
        except RuntimeError as error:
            raise UserError(f"{path} holds the weights of another network; put {WHAT} there") from error
        self.sha256 = sha256_of(path)

    @property
    def is_the_fids(self) -> bool:
        """Whether the weights are the very ones that the FID is defined on."""
        return self.sha256.startswith(FID_SHA256)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 2048)."""
        pixels = ((images.expand(-1, 3, -1, -1) + 1) * 127.5).round().to(torch.uint8)
        features: Tensor = self.network(pixels)[0]
        return features
