"""The loop of the tutorials, which ours is compared with: a picture at a time through Pillow, two passes of the generator, losses read at
every step. The networks, the batch and the data are ours; so is nothing else."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from training.layers import DoublingConv2d


class Pictures(Dataset[Tensor]):
    """uint8 (N, C, H, W), as torchvision's own sets hand them out: each a Pillow image, then transformed."""

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        channels = pixels.shape[1]
        half = (0.5,) * channels
        self.pixels = pixels.squeeze(1) if channels == 1 else pixels.transpose(0, 2, 3, 1)
        self.transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(half, half)])

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> Tensor:
        image: Tensor = self.transform(Image.fromarray(self.pixels[index]))
        return image


def unfused(network: nn.Module) -> nn.Module:
    """The same network with doubling and convolution apart, as everybody writes them; the weights are shared."""
    for name, child in network.named_children():
        if isinstance(child, DoublingConv2d):
            convolution = nn.Conv2d(child.in_channels, child.out_channels, 3, padding=1, bias=child.bias is not None)
            convolution.weight, convolution.bias = child.weight, child.bias
            setattr(network, name, nn.Sequential(nn.Upsample(scale_factor=2.0), convolution))
        else:
            unfused(child)
    return network


def loop(
    generator: nn.Module, discriminator: nn.Module, pixels: NDArray[np.uint8], latent_size: int, batch_size: int, num_workers: int
) -> Iterator[int]:
    """Trains for ever; yields the number of images after each step."""
    loader = DataLoader(Pictures(pixels), batch_size, shuffle=True, drop_last=True, num_workers=num_workers)
    criterion = nn.BCEWithLogitsLoss()
    generator_optimizer = torch.optim.Adam(generator.parameters(), lr=2e-4, betas=(0.5, 0.999))
    discriminator_optimizer = torch.optim.Adam(discriminator.parameters(), lr=2e-4, betas=(0.5, 0.999))
    losses = []
    while True:
        for images in loader:
            valid, fake = torch.ones(len(images)), torch.zeros(len(images))

            discriminator_optimizer.zero_grad()
            generated = generator(torch.randn(len(images), latent_size))
            discriminator_loss = criterion(discriminator(images), valid) + criterion(discriminator(generated.detach()), fake)
            discriminator_loss.backward()
            discriminator_optimizer.step()

            generator_optimizer.zero_grad()
            generated = generator(torch.randn(len(images), latent_size))
            generator_loss = criterion(discriminator(generated), valid)
            generator_loss.backward()
            generator_optimizer.step()

            losses.append((discriminator_loss.item(), generator_loss.item()))
            yield len(images)
