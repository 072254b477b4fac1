"""Layers that several architectures share."""

import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from training.game import Norm

_WEIGHTED = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d, nn.Embedding)


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
