"""Every architecture at a tiny width, and the data it takes: what the tests of training share."""

import torch

from training import catalog
from training.game import Architecture, DataSpec, Tensors

# Options at which a step takes milliseconds, and the data that such a network is shown.
OPTIONS: dict[str, dict[str, object]] = {
    "mlp": {"latent_size": 4, "generator_widths": (8, 8), "discriminator_widths": (8, 8)},
    "dcgan": {"latent_size": 4, "generator_width": 4, "discriminator_width": 4},
    "cifar": {"latent_size": 4, "generator_width": 4, "discriminator_width": 4},
    "cgan": {"latent_size": 4, "generator_width": 4, "discriminator_width": 4},
    "lapgan": {
        "latent_size": 4,
        "first_generator_width": 8,
        "first_discriminator_width": 8,
        "generator_width": 4,
        "discriminator_width": 4,
    },
    "r3gan": {"latent_size": 4, "group_width": 4, "width": 4, "max_width": 8},
    "r3gan-conditional": {"latent_size": 4, "group_width": 4, "width": 4, "max_width": 8},
    "pix2pix": {"num_levels": 3, "generator_width": 4, "discriminator_width": 4},
    "srgan": {"num_blocks": 1, "generator_width": 4, "discriminator_width": 2, "content": "discriminator", "pixel_phase": 0.0},
}
CLASSES = ("a", "b", "c")


def tiny(key: str, **options: object) -> Architecture:
    return catalog.architectures()[key].model_validate(OPTIONS[key] | options)


def data_for(key: str, size: int = 16, channels: int = 1) -> DataSpec:
    """Images of any kind that the architecture may need: with classes, and paired."""
    del key
    shape = (channels, size, size)
    return DataSpec(shape, CLASSES, shape)


def batch_of(data: DataSpec, count: int, seed: int = 0) -> Tensors:
    """Random images, one-hot labels in turn, and random sources."""
    random = torch.Generator().manual_seed(seed)
    batch = {"image": torch.rand(count, *data.shape, generator=random) * 2 - 1}
    if data.class_names is not None:
        batch["label"] = torch.eye(len(data.class_names))[torch.arange(count) % len(data.class_names)]
    if data.source_shape is not None:
        batch["source"] = torch.rand(count, *data.source_shape, generator=random) * 2 - 1
    return batch
