from torch import nn

from training import catalog
from training.game import DataSpec, Terms


def layers(network: nn.Module) -> list[nn.Module]:
    return [module for module in network.modules() if not list(module.children())]


def test_mlp_has_the_layers_that_it_is_known_for() -> None:
    game = catalog.architectures()["mlp"]().games(DataSpec((1, 28, 28)), Terms())["main"]
    sizes = {
        role: [(layer.in_features, layer.out_features) for layer in layers(network) if isinstance(layer, nn.Linear)]
        for role, network in (("generator", game.generator), ("discriminator", game.discriminator))
    }
    assert sizes["generator"] == [(128, 256), (256, 512), (512, 1024), (1024, 784)]
    assert sizes["discriminator"] == [(784, 256), (256, 128), (128, 64), (64, 1)]
    assert [str(layer) for layer in layers(game.generator) if not isinstance(layer, nn.Linear)] == [
        *["LeakyReLU(negative_slope=0.2, inplace=True)"] * 3,
        "Tanh()",
        "Unflatten(dim=1, unflattened_size=(1, 28, 28))",
    ]
    assert [str(layer) for layer in layers(game.discriminator) if not isinstance(layer, nn.Linear)] == [
        "Flatten(start_dim=1, end_dim=-1)",
        *["LeakyReLU(negative_slope=0.2, inplace=True)", "Dropout(p=0.3, inplace=False)"] * 3,
    ]
