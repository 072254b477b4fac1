"""VGG-19's convolutions, whose maps SRGAN compares images by. Their weights are never downloaded: they are put into a folder by hand.

Source: Simonyan and Zisserman 2014, arXiv:1409.1556, table 1, configuration E.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from training.features import BY_HAND
from training.features.weights import check_fits, read_weights

WHAT = "the state dict of torchvision's vgg19 for ImageNet (vgg19-dcbb9e9d.pth)"
# channels of each convolution; None halves the size
LAYERS = (64, 64, None, 128, 128, None, 256, 256, 256, 256, None, 512, 512, 512, 512, None, 512, 512, 512, 512)
MEANS, DEVIATIONS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, pixels in [0, 1]


class VGG19(nn.Module):
    """Frozen; images are float (N, 3, H, W) in [-1, 1], H and W 16 at least, and gradients flow to them."""

    means: Tensor
    deviations: Tensor

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in LAYERS:
            if width is None:
                layers.append(nn.MaxPool2d(2))
            else:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
        self.features = nn.Sequential(*layers[:-1])  # numbered as torchvision's; the last is conv5_4, number 34
        self.register_buffer("means", torch.tensor(MEANS).view(3, 1, 1), persistent=False)
        self.register_buffer("deviations", torch.tensor(DEVIATIONS).view(3, 1, 1), persistent=False)
        self.requires_grad_(False)

    @classmethod
    def from_weights(cls, folder: Path) -> "VGG19":
        """With `vgg19.pth` of the folder, a state dict in torchvision's layout; its classifier is not read.

        Raises:
            UserError: there is no such file, or it holds something else.
        """
        found = read_weights(folder / BY_HAND["vgg19"], WHAT)
        network = cls()
        expected = network.state_dict()
        check_fits(found, expected, folder / BY_HAND["vgg19"], WHAT)
        network.load_state_dict({name: found[name] for name in expected}, assign=True)
        return network

    def forward(self, images: Tensor) -> Tensor:
        """(N, 512, H // 16, W // 16): conv5_4 before its activation."""
        maps: Tensor = self.features(((images + 1) / 2 - self.means) / self.deviations)
        return maps
