import pytest
import torch
from tiny import tiny
from torch import nn

from training import catalog
from training.game import DataSpec, Norm, Terms, UnsuitableDataError
from training.layers import DoublingConv2d


def layers(network: nn.Module) -> list[nn.Module]:
    return [module for module in network.modules() if not list(module.children())]


def networks(shape: tuple[int, int, int], norm: Norm = "batch", **options: object) -> tuple[nn.Module, nn.Module]:
    game = catalog.architectures()["cifar"].model_validate(options).games(DataSpec(shape), Terms(norm))["main"]
    return game.generator, game.discriminator


def multiplications(network: nn.Module, values: torch.Tensor) -> int:
    """Of one row in linear layers and convolutions."""
    counts: list[int] = []

    def count(layer: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        places = output[0, 0].numel() if output.dim() == 4 else 1
        share = 4 / 9 if isinstance(layer, DoublingConv2d) else 1  # 16 products in place of 36
        counts.append(int(share * layer.weight.numel() * places))  # type: ignore[union-attr,operator]

    for layer in layers(network):
        if isinstance(layer, nn.Linear | nn.Conv2d):
            layer.register_forward_hook(count)
    network.eval()(values)
    return sum(counts)


def test_the_generator_is_a_linear_layer_to_128_x_8_x_8_two_nearest_upsamplings_and_3_x_3_convolutions() -> None:
    generator, _ = networks((3, 32, 32))
    norms = [layer for layer in layers(generator) if isinstance(layer, nn.BatchNorm2d)]
    assert [(norm.num_features, norm.momentum, norm.eps) for norm in norms] == [(128, 0.1, 1e-5), (64, 0.1, 1e-5)]
    assert [str(layer) for layer in layers(generator) if layer not in norms] == [
        "Linear(in_features=100, out_features=8192, bias=True)",
        "ReLU(inplace=True)",
        "Unflatten(dim=1, unflattened_size=(128, 8, 8))",
        "DoublingConv2d(128, 128, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False)",
        "ReLU(inplace=True)",
        "DoublingConv2d(128, 64, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False)",
        "ReLU(inplace=True)",
        "Conv2d(64, 3, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))",
        "Tanh()",
    ]
    assert multiplications(generator, torch.zeros(1, 100)) == 52_920_320


def test_the_discriminator_is_strided_convolutions_with_dropout_and_a_norm_in_all_but_the_first() -> None:
    _, discriminator = networks((3, 32, 32))
    kinds = [type(layer).__name__ for layer in layers(discriminator)]
    block = ["LeakyReLU", "Dropout"]
    assert kinds == ["Conv2d", *block, *["Conv2d", "BatchNorm2d", *block] * 3, "Flatten", "Linear"]
    convolutions = [layer for layer in layers(discriminator) if isinstance(layer, nn.Conv2d)]
    assert [(layer.in_channels, layer.out_channels, layer.stride[0]) for layer in convolutions] == [
        (3, 32, 2),
        (32, 64, 2),
        (64, 128, 2),
        (128, 256, 1),
    ]
    assert {layer.p for layer in layers(discriminator) if isinstance(layer, nn.Dropout)} == {0.25}
    assert {layer.negative_slope for layer in layers(discriminator) if isinstance(layer, nn.LeakyReLU)} == {0.2}
    assert {layer.momentum for layer in layers(discriminator) if isinstance(layer, nn.BatchNorm2d)} == {0.1}


@pytest.mark.parametrize(("norm", "kind"), [("batch", nn.BatchNorm2d), ("sample", nn.GroupNorm), ("none", nn.Identity)])
def test_the_discriminator_holds_the_norm_that_the_terms_allow_and_no_bias_before_it(norm: Norm, kind: type[nn.Module]) -> None:
    _, discriminator = networks((3, 32, 32), norm)
    assert sum(isinstance(layer, kind) for layer in layers(discriminator)) == 3
    assert sum(isinstance(layer, nn.BatchNorm2d | nn.GroupNorm) for layer in layers(discriminator)) == (0 if norm == "none" else 3)
    biases = [layer.bias is not None for layer in layers(discriminator) if isinstance(layer, nn.Conv2d)]
    assert biases == [True, *[norm == "none"] * 3]


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 16, 64), (1, 20, 36)])
def test_any_sides_that_are_multiples_of_four_are_made_and_judged(shape: tuple[int, int, int]) -> None:
    architecture, data = tiny("cifar"), DataSpec(shape)
    architecture.check(data)
    game = architecture.games(data, Terms())["main"]
    image = game.generator(torch.randn(2, 4))
    assert image.shape == (2, *shape)
    assert game.discriminator(image).shape == (2,)


@pytest.mark.parametrize(("height", "width"), [(30, 32), (32, 30), (12, 32), (32, 68)])
def test_other_sides_are_refused(height: int, width: int) -> None:
    with pytest.raises(UnsuitableDataError) as caught:
        tiny("cifar").check(DataSpec((3, height, width)))
    assert str(caught.value) == (
        f"cifar makes images whose sides are multiples of 4 from 16 to 64 pixels, and these are {width} x {height};"
        " add the data set again at size 32"
    )


def test_weights_begin_from_a_normal_of_deviation_two_hundredths() -> None:
    torch.manual_seed(0)
    weighted = [layer for network in networks((3, 32, 32)) for layer in layers(network) if isinstance(layer, nn.Linear | nn.Conv2d)]
    for layer in weighted:
        count = layer.weight.numel()
        assert abs(layer.weight.std().item() / 0.02 - 1) < 5 / (2 * count) ** 0.5
        assert layer.bias is None or not layer.bias.any()


def test_dropout_is_an_option_and_is_off_when_served() -> None:
    torch.manual_seed(0)
    _, discriminator = networks((3, 32, 32), "none", dropout=0.5)
    image = torch.randn(2, 3, 32, 32)
    assert not torch.equal(discriminator(image), discriminator(image))
    discriminator.eval()
    assert torch.equal(discriminator(image), discriminator(image))
