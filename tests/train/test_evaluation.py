from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from training import datasets
from training.contract import TrainConfig, UserError
from training.data import to_images
from training.detectors import memorising
from training.evaluation import Evaluator
from training.export import HeldOut
from training.game import Given

CPU = torch.device("cpu")


def config(num_evaluated: int = 40, extractor: str = "digits-classifier") -> TrainConfig:
    return TrainConfig(num_evaluated=num_evaluated, extractor=extractor)


@pytest.fixture(scope="module")
def fashion() -> Tensor:
    """120 images of the built-in set."""
    return to_images(torch.tensor(datasets.load("fashion-mnist-10k", Path("nowhere")).images[:120]))


def noisy(images: Tensor, deviation: float) -> Tensor:
    return images + deviation * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))


def test_a_quick_evaluation_is_of_features_and_the_kernel_distance_chooses(fashion: Tensor, tmp_path: Path) -> None:
    evaluator = Evaluator.of(config(), HeldOut(fashion[:80]), tmp_path, CPU)
    good, bad = evaluator.quick(fashion[80:]), evaluator.quick(noisy(fashion[80:], 0.5))
    names = ["kid_digits_classifier", "kid_digits_classifier_low", "kid_digits_classifier_high", "fd_digits_classifier"]
    names += ["diversity_digits_classifier", "precision_digits_classifier", "recall_digits_classifier", "class_variety_digits_classifier"]
    assert list(good) == [*names, "num_evaluated"]
    assert good["kid_digits_classifier_low"] < good["kid_digits_classifier"] < good["kid_digits_classifier_high"]
    assert evaluator.chosen_by(good) == good["kid_digits_classifier"]
    assert evaluator.is_better(evaluator.chosen_by(good), evaluator.chosen_by(bad))
    assert not evaluator.is_better(evaluator.chosen_by(bad), evaluator.chosen_by(good))
    assert good["fd_digits_classifier"] < bad["fd_digits_classifier"]


def test_a_thorough_evaluation_adds_neighbourhoods_and_a_classifiers_modes(fashion: Tensor, tmp_path: Path) -> None:
    evaluator = Evaluator.of(config(extractor="fashion-classifier"), HeldOut(fashion[:80]), tmp_path, CPU)
    found = evaluator.thorough(fashion[80:])
    assert evaluator.quick(fashion[80:]).items() <= found.items()
    added = {"precision", "recall", "density", "coverage", "modes", "mode_divergence"}
    assert {f"{name}_fashion_classifier" for name in added} <= set(found)
    assert found["modes_fashion_classifier"] >= 8
    collapsed = evaluator.thorough(fashion[80:81].repeat(40, 1, 1, 1) + noisy(torch.zeros(40, 1, 28, 28), 0.01))
    assert collapsed["modes_fashion_classifier"] == 1
    assert collapsed["coverage_fashion_classifier"] < 0.3 < found["coverage_fashion_classifier"]


def test_generated_images_that_are_the_held_out_ones_are_perfect(fashion: Tensor, tmp_path: Path) -> None:
    held_out = HeldOut(fashion)
    evaluator = Evaluator.of(config(), held_out, tmp_path, CPU)
    found = evaluator.thorough(held_out.some(40).images)
    assert found["fd_digits_classifier"] < 1e-4
    assert found["kid_digits_classifier"] < 0  # unbiased, and every row has its like among the others
    assert (found["precision_digits_classifier"], found["recall_digits_classifier"], found["coverage_digits_classifier"]) == (1, 1, 1)


def test_where_each_image_has_its_own_target_psnr_chooses_beside_that_of_the_baseline(fashion: Tensor, tmp_path: Path) -> None:
    held_out = HeldOut(fashion[:40], Given(baseline=noisy(fashion[:40], 0.2)))
    evaluator = Evaluator.of(config(), held_out, tmp_path, CPU)
    good, bad = evaluator.quick(noisy(fashion[:40], 0.1)), evaluator.quick(noisy(fashion[:40], 0.4))
    assert list(good) == ["psnr", "ssim", "psnr_baseline", "ssim_baseline"]
    assert good["psnr"] > good["psnr_baseline"] > bad["psnr"]
    assert good["ssim"] > good["ssim_baseline"] > bad["ssim"]
    assert evaluator.chosen_by(good) == good["psnr"]
    assert evaluator.is_better(good["psnr"], bad["psnr"])
    assert not evaluator.is_better(bad["psnr"], good["psnr"])
    thorough = evaluator.thorough(noisy(fashion[:40], 0.1))
    assert good.items() <= thorough.items()
    assert "kid_digits_classifier" in thorough


def test_images_all_alike_are_not_various(fashion: Tensor, tmp_path: Path) -> None:
    evaluator = Evaluator.of(config(extractor="fashion-classifier"), HeldOut(fashion[:40]), tmp_path, CPU)
    good, alike = evaluator.quick(fashion[80:]), evaluator.quick(noisy(fashion[81:82].repeat(40, 1, 1, 1), 0.01))
    assert 0.8 < good["diversity_fashion_classifier"] < 1.25
    assert 0.7 < good["class_variety_fashion_classifier"] < 1.4
    assert alike["diversity_fashion_classifier"] < 0.1
    assert alike["class_variety_fashion_classifier"] < 0.2


@pytest.mark.parametrize("size", [28, 40])
def test_copies_of_what_was_trained_on_are_seen_and_of_other_images_are_not(fashion: Tensor, tmp_path: Path, size: int) -> None:
    images = torch.nn.functional.interpolate(fashion, (size, size))
    trained_on = torch.cat([images[:40], images[:10]])  # some twice, which count once
    evaluator = Evaluator.of(config(), HeldOut(images[40:80]), tmp_path, CPU, trained_on)
    copies, others = evaluator.quick(noisy(images[:40], 0.3)), evaluator.quick(images[80:])
    assert copies["training_share"] > 0.9
    assert memorising(copies) is not None
    assert abs(others["training_share"] - 0.5) < 3 * others["training_share_error"]
    assert memorising(others) is None
    assert {"training_share", "training_share_error"} <= set(evaluator.thorough(images[80:]))


def test_tiny_images_have_no_ssim(tmp_path: Path) -> None:
    images = torch.rand(10, 3, 8, 8)
    evaluator = Evaluator.of(config(10), HeldOut(images, Given(baseline=images / 2)), tmp_path, CPU)
    assert set(evaluator.quick(images)) == {"psnr", "psnr_baseline"}


def test_too_few_images_are_refused() -> None:
    with pytest.raises(ValidationError, match="num_evaluated 5 is too few to compare: give 6 at least, or 0 for none"):
        config(5)


def test_a_stop_at_a_collapse_that_nobody_looks_for_is_refused() -> None:
    with pytest.raises(ValidationError, match="on_collapse stop has no effect without evaluations: give num_evaluated"):
        TrainConfig(num_evaluated=0, on_collapse="stop")


def test_an_extractor_that_is_not_to_be_had_is_refused_before_anything_is_generated(fashion: Tensor, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no inception"):
        Evaluator.of(config(extractor="inception-v3"), HeldOut(fashion), tmp_path, CPU)
