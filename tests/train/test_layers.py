from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from training.layers import DoublingConv2d, Dropout, add_spectral_norm, fold_parametrizations, initialise_normal, norm2d, plain_dropout

Make = Callable[[], nn.Module]

WEIGHTED: dict[str, tuple[Make, Tensor, int]] = {  # a layer, what it takes, and the axis of its outputs in its weight
    "linear": (lambda: nn.Linear(6, 4), torch.rand(5, 6), 0),
    "convolution": (lambda: nn.Conv2d(2, 5, 3), torch.rand(5, 2, 8, 8), 0),
    "transposed convolution": (lambda: nn.ConvTranspose2d(2, 5, 3), torch.rand(5, 2, 8, 8), 1),
    "doubling convolution": (lambda: DoublingConv2d(2, 5), torch.rand(5, 2, 8, 8), 0),
    "embedding": (lambda: nn.Embedding(7, 3), torch.tensor([0, 3, 6]), 0),
}
weighted = pytest.mark.parametrize("name", WEIGHTED)


def largest_singular_value(weight: Tensor, axis: int) -> float:
    return float(torch.linalg.matrix_norm(weight.detach().movedim(axis, 0).flatten(1).double(), 2))


# --- norms --------------------------------------------------------------------------------------------------------------------


def test_a_norm_over_the_batch_an_image_or_nothing() -> None:
    image = torch.rand(4, 6, 5, 5) * torch.arange(1.0, 5.0)[:, None, None, None] + torch.arange(6.0)[:, None, None]
    over_batch = norm2d("batch", 6)(image)
    assert torch.allclose(over_batch.mean((0, 2, 3)), torch.zeros(6), atol=1e-5)
    assert torch.allclose(over_batch.var((0, 2, 3), correction=0), torch.ones(6), atol=1e-3)
    over_image = norm2d("sample", 6)(image)
    assert torch.allclose(over_image.mean((1, 2, 3)), torch.zeros(4), atol=1e-5)
    assert torch.allclose(over_image.var((1, 2, 3), correction=0), torch.ones(4), atol=1e-3)
    assert over_image.mean((2, 3)).abs().min() > 0.05, "one norm for all channels"
    assert torch.equal(norm2d("none", 6)(image), image)


@pytest.mark.parametrize(("norm", "alone"), [("batch", False), ("sample", True), ("none", True)])
def test_only_the_norm_over_the_batch_looks_at_batch_mates(norm: str, alone: bool) -> None:
    layer = norm2d(norm, 6)  # type: ignore[arg-type]
    image = torch.rand(4, 6, 5, 5)
    together, apart = layer(image), torch.cat([layer(image[row : row + 1]) for row in range(4)])
    assert torch.allclose(together, apart, atol=1e-5) == alone


# --- doubling -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", [(1, 1), (2, 2), (4, 6), (5, 3)])
def test_doubling_and_convolving_in_one_equals_the_two_in_value_and_every_gradient(size: tuple[int, int], bias: bool) -> None:
    torch.manual_seed(0)
    one = DoublingConv2d(5, 7, bias=bias).double()
    image = torch.rand(3, 5, *size, dtype=torch.float64, requires_grad=True)
    two = F.conv2d(F.interpolate(image, scale_factor=2.0), one.weight, one.bias, padding=1)
    assert torch.allclose(one(image), two, rtol=1e-12, atol=1e-14)
    towards = torch.rand_like(two)
    wanted, found = (torch.autograd.grad((output * towards).sum(), [image, *one.parameters()]) for output in (two, one(image)))
    assert all(torch.allclose(a, b, rtol=1e-12, atol=1e-14) for a, b in zip(found, wanted, strict=True))


# --- first weights ------------------------------------------------------------------------------------------------------------


def test_weights_begin_as_the_papers_say() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(64, 64, 4), nn.ConvTranspose2d(64, 64, 4), nn.Linear(200, 200), nn.Embedding(200, 200))
    norms = nn.ModuleList([nn.BatchNorm2d(4000), nn.GroupNorm(1, 4000), nn.InstanceNorm2d(4000, affine=True)])
    for layer in [*network.apply(initialise_normal), *norms.apply(initialise_normal)]:
        mean = 1.0 if layer in list(norms) else 0.0
        assert float(layer.weight.detach().mean()) == pytest.approx(mean, abs=2e-3)
        assert float(layer.weight.detach().std()) == pytest.approx(0.02, rel=0.05)
        assert getattr(layer, "bias", None) is None or not layer.bias.detach().any()


def test_layers_without_weights_are_left_alone() -> None:
    for layer in (nn.BatchNorm2d(3, affine=False), nn.InstanceNorm2d(3), nn.ReLU(), nn.Conv2d(2, 2, 1, bias=False)):
        layer.apply(initialise_normal)


# --- spectral norm ------------------------------------------------------------------------------------------------------------


@weighted
def test_the_largest_singular_value_becomes_one_and_stays_one_while_weights_move(name: str) -> None:
    torch.manual_seed(0)
    make, given, axis = WEIGHTED[name]
    layer = make()
    before = layer.weight.detach().clone()
    add_spectral_norm(layer)
    adam = torch.optim.Adam(layer.parameters(), lr=0.01)
    for _ in range(40):
        adam.zero_grad()
        (-layer(given).square().mean()).backward()  # left to itself the layer would grow
        adam.step()
        layer(given)
    assert largest_singular_value(layer.weight, axis) == pytest.approx(1, rel=0.02)
    assert not torch.allclose(layer.parametrizations.weight.original, before, atol=0.1), "the weights did move"


@weighted
def test_folded_weights_are_plain_and_give_the_same(name: str) -> None:
    make, given, _ = WEIGHTED[name]
    plain = make()
    network = nn.Sequential(make(), nn.Identity())
    add_spectral_norm(network)
    for _ in range(3):
        network(given)
    network.eval()
    expected = network(given).detach()
    fold_parametrizations(network)
    assert not any(parametrize.is_parametrized(module) for module in network.modules())
    assert set(network[0].state_dict()) == set(plain.state_dict())
    assert type(network[0]) is type(plain)
    assert torch.equal(network(given), expected)


def test_every_weight_of_a_network_is_normed_and_nothing_else_is() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.GroupNorm(1, 2), nn.Sequential(nn.Flatten(), nn.Linear(8, 1)), nn.PReLU())
    add_spectral_norm(network)
    normed = [name for name, module in network.named_modules() if parametrize.is_parametrized(module)]
    assert normed == ["0", "2.1"]


def test_in_evaluation_a_forward_pass_changes_no_state() -> None:
    network = nn.Sequential(nn.Linear(6, 4))
    add_spectral_norm(network)
    network.eval()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    network(torch.rand(5, 6))
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_folding_a_deep_copy_leaves_the_original_as_it_is() -> None:
    network, given = nn.Sequential(nn.Linear(6, 4)), torch.rand(5, 6)
    add_spectral_norm(network)
    network.eval()
    expected = network(given).detach()
    copied = deepcopy(network)
    fold_parametrizations(copied)
    assert torch.equal(copied(given), expected)
    assert parametrize.is_parametrized(network[0])
    assert torch.equal(network(given), expected)
    network(given).sum().backward()
    assert network.get_parameter("0.parametrizations.weight.original").grad is not None


def test_a_network_without_parametrizations_is_folded_into_itself() -> None:
    layer = nn.Linear(3, 2)
    before = layer.weight
    fold_parametrizations(layer)
    assert layer.weight is before


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_dropout_leaves_out_its_share_and_scales_the_rest(share: float, memory_format: torch.memory_format) -> None:
    torch.manual_seed(0)
    dropout, given = Dropout(share).train(), torch.ones(8, 6, 50, 51).to(memory_format=memory_format).requires_grad_()
    dropped = dropout(given)
    assert dropped.is_contiguous(memory_format=memory_format)
    assert float((dropped == 0).float().mean()) == pytest.approx(share, abs=0.005)  # 122,400 values: three deviations and more
    assert dropped[dropped != 0].unique().tolist() == pytest.approx([1 / (1 - share)], rel=1e-3)
    assert float(dropped[0].detach().mean(0).std()) > 0.05, "channels are not left out together"
    (gradient,) = torch.autograd.grad(dropped.square().sum(), given, create_graph=True)
    assert torch.allclose(gradient, 2 * dropped * dropped.max()), "where it is left out, nothing flows back"
    torch.autograd.grad(gradient.sum(), given)  # as a penalty asks
    torch.manual_seed(0)
    assert torch.equal(dropout(given), dropped)
    assert not torch.equal(dropout(given), dropped)
    assert torch.equal(dropout.eval()(given), given)


def test_dropout_keeps_all_at_0_and_halves_their_type() -> None:
    given = torch.rand(7, 3)
    assert torch.equal(Dropout(0.0).train()(given), given)
    assert Dropout(0.5).train()(given.bfloat16()).dtype == torch.bfloat16
    assert Dropout(0.9999999).train()(torch.ones(1000, 100)).count_nonzero() < 20
    network = nn.Sequential(nn.Linear(3, 3), Dropout(0.5))
    plain_dropout(network)
    assert [type(layer) for layer in network] == [nn.Linear, nn.Dropout]
