import math

import pytest
import torch
from tiny import tiny
from torch import Tensor, nn

from training import catalog
from training.game import DataSpec, Norm, Terms, UnsuitableDataError


def layers(network: nn.Module) -> list[nn.Module]:
    return [module for module in network.modules() if not list(module.children())]


def dcgan(size: int, channels: int, norm: Norm = "batch", **options: object) -> tuple[nn.Module, nn.Module]:
    games = tiny("dcgan", **options).games(DataSpec((channels, size, size)), Terms(norm))
    return games["main"].generator, games["main"].discriminator


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("size", "grown"), [(16, (4, 8, 16)), (28, (7, 14, 28)), (32, (4, 8, 16, 32)), (64, (4, 8, 16, 32, 64)), (128, (4, 8, 16, 32, 64, 128))]
)
def test_dcgan_doubles_from_the_latent_to_the_image_and_halves_back(size: int, grown: tuple[int, ...], channels: int) -> None:
    generator, discriminator = dcgan(size, channels)
    seen: dict[str, list[tuple[int, ...]]] = {"up": [], "down": []}
    for layer in layers(generator):
        if isinstance(layer, nn.ConvTranspose2d):
            layer.register_forward_hook(lambda _module, _inputs, output: seen["up"].append(tuple(output.shape[1:])))
    for layer in layers(discriminator):
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(lambda _module, _inputs, output: seen["down"].append(tuple(output.shape[1:])))
    image = generator(torch.randn(2, 4))
    assert image.shape == (2, channels, size, size)
    assert discriminator(image).shape == (2,)
    widths = [4 * 2**step for step in reversed(range(len(grown) - 1))]
    assert seen["up"] == [(width, side, side) for width, side in zip([*widths, channels], grown, strict=True)]
    assert seen["down"] == [*((width, side, side) for width, side in zip(widths[::-1], grown[-2::-1], strict=True)), (1, 1, 1)]


def test_dcgan_is_built_of_the_papers_layers() -> None:
    generator, discriminator = dcgan(32, 3)
    kinds = [type(layer).__name__ for layer in layers(generator)]
    assert kinds == ["Unflatten", "ConvTranspose2d", *["BatchNorm2d", "ReLU", "ConvTranspose2d"] * 3, "Tanh"]
    kinds = [type(layer).__name__ for layer in layers(discriminator)]
    assert kinds == ["Conv2d", "LeakyReLU", *["Conv2d", "BatchNorm2d", "LeakyReLU"] * 2, "Conv2d"], "no norm in the first and the last"
    assert {layer.negative_slope for layer in layers(discriminator) if isinstance(layer, nn.LeakyReLU)} == {0.2}
    norms = [layer for network in (generator, discriminator) for layer in layers(network) if isinstance(layer, nn.BatchNorm2d)]
    assert {(norm.momentum, norm.eps) for norm in norms} == {(0.1, 1e-5)}, "0.8 would weigh the newest batch alone"


def test_dcgan_of_default_widths_has_the_papers_size() -> None:
    game = catalog.architectures()["dcgan"]().games(DataSpec((3, 64, 64)), Terms())["main"]
    convolutions = [layer.weight.shape for layer in layers(game.generator) if isinstance(layer, nn.ConvTranspose2d)]
    widths = [(100, 512), (512, 256), (256, 128), (128, 64), (64, 3)]
    assert [tuple(shape) for shape in convolutions] == [(*width, 4, 4) for width in widths]


@pytest.mark.parametrize("norm", ["batch", "sample", "none"])
def test_dcgan_starts_from_the_papers_normal_weights(norm: Norm) -> None:
    torch.manual_seed(0)
    networks = dcgan(32, 3, norm, latent_size=64, generator_width=32, discriminator_width=32)
    for layer in (layer for network in networks for layer in layers(network)):
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            check_normal(layer.weight, 0.0, 0.02)
        elif isinstance(layer, nn.BatchNorm2d | nn.GroupNorm):
            check_normal(layer.weight, 1.0, 0.02)
        bias = getattr(layer, "bias", None)
        assert bias is None or not bias.any()


def check_normal(values: Tensor, mean: float, deviation: float) -> None:
    """Mean and deviation within five standard errors, and a share beyond two deviations as a normal has it."""
    count = values.numel()
    assert abs(values.mean().item() - mean) < 5 * deviation / math.sqrt(count)
    assert abs(values.std().item() / deviation - 1) < 5 / math.sqrt(2 * count)
    if count > 5000:
        assert ((values - mean).abs() > 2 * deviation).float().mean().item() == pytest.approx(0.0455, abs=0.01)


def test_a_samplewise_critic_of_dcgan_has_no_batch_norm() -> None:
    _, discriminator = dcgan(32, 3, "sample")
    kinds = {type(layer).__name__ for layer in layers(discriminator)}
    assert "BatchNorm2d" not in kinds
    assert "GroupNorm" in kinds


@pytest.mark.parametrize(("height", "width"), [(20, 20), (28, 32), (256, 256), (8, 8)])
def test_a_size_that_dcgan_cannot_make_is_refused(height: int, width: int) -> None:
    with pytest.raises(UnsuitableDataError) as caught:
        tiny("dcgan").check(DataSpec((1, height, width)))
    assert str(caught.value) == (
        f"dcgan makes square images of 16, 28, 32, 64, 128 pixels, and these are {width} x {height};"
        " add the data set again at one of these sizes"
    )
