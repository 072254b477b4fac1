from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur, normalize

from training import datasets
from training.contract import UserError
from training.data import to_images
from training.features import BY_HAND, EXTRACTORS
from training.features.efficientnet import EfficientNetLite0
from training.features.extractors import FeatureExtractor, feature_extractor
from training.features.vgg import LAYERS, VGG19
from training.metrics import kernel_distance

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def efficientnet() -> EfficientNetLite0:
    return EfficientNetLite0.pretrained()


@pytest.fixture(scope="module")
def fashion() -> Tensor:
    """120 images of the built-in set."""
    return to_images(torch.tensor(datasets.load("fashion-mnist-10k", Path("nowhere")).images[:120]))


@pytest.fixture(scope="module")
def inception_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with random weights of Inception's shapes, 1008 classes as the FID's has."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    network = torchvision.models.inception_v3(weights=None, num_classes=1008, aux_logits=False, init_weights=False)
    torch.save(network.state_dict(), folder / BY_HAND["inception-v3"])
    return folder


def scene(size: int) -> Tensor:
    """A traffic light: a dark box with a red, an amber and a green disc, before a light sky."""
    rows, columns = torch.meshgrid(torch.linspace(0, 1, size), torch.linspace(0, 1, size), indexing="ij")
    image = torch.tensor([0.6, 0.75, 0.95]).view(3, 1, 1).repeat(1, size, size)
    image[:, ((columns - 0.5).abs() < 0.17) & ((rows - 0.5).abs() < 0.42)] = 0.08
    for height, colour in ((0.23, (1.0, 0.1, 0.05)), (0.5, (0.35, 0.25, 0.02)), (0.77, (0.02, 0.25, 0.05))):
        image[:, (rows - height) ** 2 + (columns - 0.5) ** 2 < 0.11**2] = torch.tensor(colour).view(3, 1)
    return (image * 2 - 1)[None]


# --- EfficientNet-Lite0 -------------------------------------------------------------------------------------------------------


def test_efficientnet_knows_what_it_was_trained_on(efficientnet: EfficientNetLite0) -> None:
    """The same network named photographs rightly: a cat 285, 282, 281; a cup of coffee 967; a rocket 657."""
    named = efficientnet(scene(224)).softmax(1)[0]
    assert int(named.argmax()) == 920  # traffic light
    assert float(named[920]) == pytest.approx(0.431, abs=0.001)  # another padding, epsilon or range makes it another


def test_efficientnets_stages_halve_and_let_gradients_through(efficientnet: EfficientNetLite0) -> None:
    images = scene(50).requires_grad_()
    stages = efficientnet.stages(images)
    assert [tuple(stage.shape) for stage in stages] == [(1, 16, 25, 25), (1, 24, 13, 13), (1, 40, 7, 7), (1, 112, 4, 4)]
    torch.autograd.backward(stages[-1].square().mean())
    assert images.grad is not None
    assert images.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in efficientnet.parameters())


def test_efficientnet_holds_no_statistics_so_training_mode_changes_nothing(efficientnet: EfficientNetLite0) -> None:
    assert not list(efficientnet.buffers())
    before = efficientnet.pooled(scene(64))
    assert torch.equal(efficientnet.train().pooled(scene(64)), before)


# --- VGG-19 -------------------------------------------------------------------------------------------------------------------


def test_vgg19_is_read_from_torchvisions_layout_and_computes_what_torchvisions_does(tmp_path: Path) -> None:
    torch.manual_seed(0)
    with torch.device("meta"):  # the classifier is 500 MB
        names = torchvision.models.vgg19(weights=None).state_dict()
    theirs = torchvision.models.vgg19(weights=None, num_classes=1).features[:35].eval()
    saved = {f"features.{name}": value for name, value in theirs.state_dict().items()}
    assert [name for name in names if name.startswith("features.")] == list(saved)
    torch.save(saved | {"classifier.0.weight": torch.zeros(1)}, tmp_path / BY_HAND["vgg19"])
    images = torch.rand(1, 3, 16, 32) * 2 - 1
    normalised = normalize(images / 2 + 0.5, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    found = VGG19.from_weights(tmp_path)(images)
    assert found.shape == (1, LAYERS[-1], 1, 2)
    assert (found < 0).any()  # before the activation
    assert torch.allclose(found, theirs(normalised), rtol=1e-4, atol=1e-4 * float(found.std()))


def test_vgg19_without_its_file_says_what_to_put_where(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"no vgg19.pth in {tmp_path}, and weights are never downloaded; put .*torchvision's vgg19"):
        VGG19.from_weights(tmp_path)


@pytest.mark.parametrize("content", [b"", b"no weights", b"PK\x03\x04", b"\x80\x02}q\x00."], ids=["empty", "text", "zip", "pickle"])
def test_a_file_that_holds_no_weights_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / BY_HAND["vgg19"]).write_bytes(content)
    with pytest.raises(UserError, match=r"vgg19.pth holds no weights that can be read; put"):
        VGG19.from_weights(tmp_path)


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ([torch.zeros(1)], "holds no state dict of tensors"),
        ({"state_dict": {}}, "holds no state dict of tensors"),
        ({"conv1.weight": torch.zeros(1)}, "weights of another network: features.0.weight is missing"),
        ({"features.0.weight": torch.zeros(1)}, r"another network: features.0.weight is \(1,\) and \(64, 3, 3, 3\) is wanted"),
    ],
)
def test_weights_of_another_network_are_refused(tmp_path: Path, saved: object, message: str) -> None:
    torch.save(saved, tmp_path / BY_HAND["vgg19"])
    with pytest.raises(UserError, match=message):
        VGG19.from_weights(tmp_path)


# --- Inception ----------------------------------------------------------------------------------------------------------------


def test_inception_reads_a_local_file_and_sees_eight_bits(inception_weights: Path) -> None:
    extractor = feature_extractor("inception-v3", inception_weights, CPU)
    images = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = extractor(images)
    assert found.shape == (2, 2048)
    pixels = ((images + 1) * 127.5).round()
    assert torch.equal(extractor(pixels / 127.5 - 1), found)
    assert torch.equal(extractor.network.network(pixels.to(torch.uint8).repeat(1, 3, 1, 1))[0], found)  # type: ignore[operator,union-attr]


def test_the_word_fid_is_kept_for_the_fids_own_weights(inception_weights: Path) -> None:
    extractor = feature_extractor("inception-v3", inception_weights, CPU)
    assert extractor.frechet == "fd_inception_v3"  # the weights are random
    extractor.network.sha256 = "6726825d" + 56 * "0"  # type: ignore[assignment]
    assert extractor.frechet == "fid"


def test_inception_without_its_file_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"there is no inception-v3.pth in {tmp_path}, and weights are never downloaded; put TensorFlow's"):
        feature_extractor("inception-v3", tmp_path, CPU)


def test_torchvisions_inception_is_not_taken_for_the_fids(tmp_path: Path) -> None:
    torch.save({"fc.weight": torch.zeros(1000, 2048)}, tmp_path / BY_HAND["inception-v3"])
    with pytest.raises(UserError, match=r"fc.weight is \(1000, 2048\) and \(1008, 2048\) is wanted; put TensorFlow's"):
        feature_extractor("inception-v3", tmp_path, CPU)
    torch.save({"fc.weight": torch.zeros(1008, 2048)}, tmp_path / BY_HAND["inception-v3"])
    with pytest.raises(UserError, match=r"holds the weights of another network; put TensorFlow's"):
        feature_extractor("inception-v3", tmp_path, CPU)


# --- every extractor ----------------------------------------------------------------------------------------------------------

SHIPPED = [name for name in EXTRACTORS if name != "inception-v3"]


@pytest.fixture(scope="module", params=SHIPPED)
def extractor(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> FeatureExtractor:
    return feature_extractor(request.param, tmp_path_factory.mktemp("empty"), CPU)


def test_an_unknown_extractor_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no feature extractor 'resnet'; there are: efficientnet-lite0, inception-v3, digits"):
        feature_extractor("resnet", tmp_path, CPU)


def test_features_are_as_many_of_grey_as_of_colour(extractor: FeatureExtractor) -> None:
    dimension = 320 if extractor.name == "efficientnet-lite0" else 128
    assert extractor(torch.zeros(2, 1, 28, 28)).shape == (2, dimension)
    assert extractor(torch.zeros(2, 3, 33, 20)).shape == (2, dimension)
    assert extractor.frechet == f"fd_{extractor.name.replace('-', '_')}"
    assert len(extractor.sha256) == 64


def test_an_images_features_do_not_depend_on_its_batch_mates(extractor: FeatureExtractor, fashion: Tensor) -> None:
    together = extractor(fashion[:60])  # more than are seen at once
    alone = torch.cat([extractor(fashion[[row]]) for row in (0, 49, 50, 59)])
    assert torch.allclose(together[[0, 49, 50, 59]], alone, rtol=1e-4, atol=1e-4)


def test_features_of_grey_images_are_those_of_the_same_images_in_colour(extractor: FeatureExtractor, fashion: Tensor) -> None:
    assert torch.allclose(extractor(fashion[:5]), extractor(fashion[:5].repeat(1, 3, 1, 1)), rtol=1e-4, atol=1e-4)


def test_values_outside_the_range_are_clamped(extractor: FeatureExtractor, fashion: Tensor) -> None:
    assert torch.equal(extractor(fashion[:5] * 3), extractor((fashion[:5] * 3).clamp(-1, 1)))


def blurred(images: Tensor, sigma: float) -> Tensor:
    return gaussian_blur(images, [7, 7], [sigma, sigma])


def noisy(images: Tensor, deviation: float) -> Tensor:
    return images + deviation * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))


def test_the_worse_the_images_the_larger_the_kernel_distance(tmp_path: Path, fashion: Tensor) -> None:
    extractor = feature_extractor("efficientnet-lite0", tmp_path, CPU)
    real, images = extractor(fashion[:60]), fashion[60:120]

    def distances(worse: list[Tensor]) -> list[float]:
        return [kernel_distance(real, extractor(some)).value for some in worse]

    good = distances([images])[0]
    for worse in (
        [blurred(images, 0.6), blurred(images, 1.2)],
        [noisy(images, 0.1), noisy(images, 0.3)],
        [images[:10].repeat(6, 1, 1, 1), images[:2].repeat(30, 1, 1, 1)],
        [F.interpolate(images[:, :, ::2, ::2], scale_factor=2.0)],
    ):
        ascending = [good, *distances(worse)]
        assert ascending == sorted(ascending)
