"""Layers that several architectures share."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from training.game import DataSpec, Norm, UnsuitableDataError

_WEIGHTED = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d, nn.Embedding)


# side of a square image -> (side that it grows from, number of doublings)
STAGES = {16: (4, 2), 28: (7, 2), 32: (4, 3), 64: (4, 4), 128: (4, 5), 256: (4, 6)}


def check_square(key: str, data: DataSpec, largest: int) -> None:
    """Raise UnsuitableDataError where images are not square, or of a side that is not among STAGES up to the largest."""
    _, height, width = data.shape
    sides = [side for side in STAGES if side <= largest]
    if height != width or height not in sides:
        raise UnsuitableDataError(
            f"{key} makes square images of {', '.join(map(str, sides))} pixels, and these are {width} x {height};"
            " add the data set again at one of these sizes"
        )


def growing(num_values: int, width: int, channels: int, size: int) -> list[nn.ConvTranspose2d]:
    """DCGAN's transposed convolutions from (num_values, 1, 1) to (channels, size, size); norm and ReLU belong before all but the first.

    Args:
        width: channels before the last, which double towards the first.
    """
    first_size, num_doublings = STAGES[size]
    wide = width * 2 ** (num_doublings - 1)
    layers = [nn.ConvTranspose2d(num_values, wide, first_size, bias=False)]
    for _ in range(num_doublings - 1):
        layers.append(nn.ConvTranspose2d(wide, wide // 2, 4, 2, 1, bias=False))
        wide //= 2
    return [*layers, nn.ConvTranspose2d(wide, channels, 4, 2, 1)]


def shrinking(channels: int, width: int, size: int, norm: Norm) -> tuple[list[nn.Module], int]:
    """DCGAN's strided convolutions with LeakyReLU 0.2 from (channels, size, size), and how many channels they end with.

    The side at the end is that which `growing` starts from. There is a norm in all but the first.
    """
    layers: list[nn.Module] = [nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(0.2, inplace=True)]
    for _ in range(STAGES[size][1] - 1):
        layers += [nn.Conv2d(width, 2 * width, 4, 2, 1, bias=norm == "none"), norm2d(norm, 2 * width), nn.LeakyReLU(0.2, inplace=True)]
        width *= 2
    return layers, width


class DoublingConv2d(nn.Conv2d):
    """(N, C, H, W) -> (N, C', 2 H, 2 W): nearest-neighbour doubling and a 3 x 3 convolution with zeros around, in one.

    Each pixel of the doubled image sees two rows and two columns of the small one, so that 16 products for a pixel of that do the work
    of 36: a transposed convolution with stride 2, whose kernel holds the sums of neighbouring weights. Equal but for rounding.
    """

    def __init__(self, in_channels: int, out_channels: int, *, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1, bias=bias)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - its name in torch
        rows = F.pad(self.weight, (0, 0, 0, 1)) + F.pad(self.weight, (0, 0, 1, 0))
        kernel = F.pad(rows, (0, 1)) + F.pad(rows, (1, 0))  # (C', C, 4, 4)
        return F.conv_transpose2d(input, kernel.flip(2, 3).transpose(0, 1), self.bias, stride=2, padding=1)


class Dropout(nn.Dropout):
    """As nn.Dropout. On a CPU its mask is made of 16 random bits a value, much sooner than torch has one; `p` is then rounded to
    a multiple of 2**-16, and what is kept is scaled by that. TorchScript wants plain ones in its place: `plain_dropout`."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - its name in torch
        return self._dropped(input) if self.training and self.p > 0 else input

    def _dropped(self, input: Tensor) -> Tensor:  # noqa: A002
        if input.device.type != "cpu" or torch.compiler.is_compiling() or self.inplace:
            return F.dropout(input, self.p, training=True, inplace=self.inplace)
        bits = torch.empty(-(-input.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
        dense = torch.empty_like(input, dtype=torch.int16)  # the input's own order of axes in memory
        dropped = min(round(self.p * 2**16), 2**16 - 1)
        kept = bits.as_strided(dense.shape, dense.stride()) >= dropped - 2**15
        return input * (kept.to(input.dtype) * (2**16 / (2**16 - dropped)))


def plain_dropout(module: nn.Module) -> None:
    """Give its Dropouts the class of torch's, which is the same in evaluation."""
    for layer in module.modules():
        if isinstance(layer, Dropout):
            layer.__class__ = nn.Dropout  # type: ignore[assignment]


def norm2d(norm: Norm, channels: int) -> nn.Module:
    """The norm that a discriminator may hold: see `training.game.Terms`."""
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    # a group of all channels normalises each image by itself
    return nn.GroupNorm(1, channels) if norm == "sample" else nn.Identity()


def initialise_normal(module: nn.Module) -> None:
    """Weights N(0, 0.02), those of norms N(1, 0.02), biases 0; for `Module.apply`.

    Source: Radford, Metz and Chintala 2015, arXiv:1511.06434, section 4; the norms as in the authors' code.
    """
    if isinstance(module, _WEIGHTED):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm | nn.InstanceNorm2d) and module.affine:
        nn.init.normal_(module.weight, 1.0, 0.02)
    else:
        return
    bias = getattr(module, "bias", None)
    if bias is not None:
        nn.init.zeros_(bias)


def add_spectral_norm(network: nn.Module) -> None:
    """Divide every weight by its largest singular value, estimated by one power iteration a forward pass in training.

    Source: Miyato et al. 2018, arXiv:1802.05957, algorithm 1.
    """
    for module in list(network.modules()):
        if isinstance(module, _WEIGHTED):
            parametrizations.spectral_norm(module)


def fold_parametrizations(network: nn.Module) -> None:
    """Make every parametrized weight of a deep copy a plain one of the same value: TorchScript knows no parametrization."""
    for module in list(network.modules()):
        if parametrize.is_parametrized(module):
            # a deep copy shares the class that was made for the original, and removing takes the weight out of that class
            shared = type(module)
            members = {name: member for name, member in vars(shared).items() if name not in ("__dict__", "__weakref__")}
            module.__class__ = type(shared.__name__, shared.__bases__, members)
            parametrized = module.parametrizations
            assert isinstance(parametrized, nn.ModuleDict), "torch keeps them in one"
            for name in list(parametrized):
                with torch.no_grad():
                    parametrize.remove_parametrizations(module, name)
