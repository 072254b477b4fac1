"""Each detector on figures by hand, then on real runs: some built to fail, some healthy."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from training import catalog, datasets
from training.contract import Finding, JobStatus, Metrics, TrainConfig
from training.datasets import About, Batch
from training.detectors import (
    JUDGED_STEPS,
    RECALL_IMAGES,
    SURE_LINES,
    Detectors,
    collapsed,
    loss_range,
    memorising,
    not_finite,
    saturated,
)
from training.files import runs
from training.loop import NotFiniteError
from training.preparation import Places
from training.run import Listener
from training.submission import find_version
from training.worker import work

MakeConfig = Callable[..., TrainConfig]
CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("torch_as_before")
GUESS = 2 * 0.6931471805599453  # of the logistic loss: -2 log(1/2)


# --- a discriminator that is sure -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "guess", "least"),
    [
        ("non-saturating", GUESS, 0.0),
        ("minimax", GUESS, 0.0),
        ("least-squares", 0.5, 0.0),
        ("hinge", 2.0, 0.0),
        ("relativistic", GUESS / 2, 0.0),
    ],
)
def test_a_loss_lies_between_sure_and_guessing(loss: str, guess: float, least: float) -> None:
    assert loss_range(catalog.losses()[loss]()) == pytest.approx((guess, least), abs=1e-6)


def test_smoothed_labels_leave_a_loss_to_who_is_sure() -> None:
    entropy = -0.1 * np.log(0.1) - 0.9 * np.log(0.9)
    assert loss_range(catalog.losses()["non-saturating"](label_smoothing=0.1)) == pytest.approx((GUESS, entropy), abs=1e-3)  # type: ignore[call-arg]


@pytest.mark.parametrize("loss", ["wasserstein-clip", "wasserstein-gp"])
def test_a_loss_that_can_fall_without_end_has_no_range(loss: str) -> None:
    assert loss_range(catalog.losses()[loss]()) is None


def test_every_loss_has_a_range_or_none() -> None:
    for kind in catalog.losses().values():
        found = loss_range(kind())
        assert found is None or found[0] > found[1]


def test_a_median_of_sure_lines_is_told_with_its_figure() -> None:
    told = saturated([0.011] * 16 + [2.0] * 4)
    assert told is not None
    assert "over the last 20 lines of metrics its loss was 1.1 % of that of a guess" in told
    assert "try a smaller learning_rate for the discriminator" in told
    assert saturated([0.04] * 20) is None
    assert saturated([0.011] * (SURE_LINES - 1)) is None


def line(images: int, **losses: float) -> Metrics:
    return Metrics(images=images, seconds=0.0, losses=losses)


def looked(detectors: Detectors, lines: Sequence[Metrics]) -> list[Finding]:
    return [finding for each in lines for finding in detectors.look(each)]


def detectors(loss: str = "non-saturating", **changes: object) -> Detectors:
    config = TrainConfig.model_validate({"batch_size": 10, "total_images": 100_000, "loss": loss, **changes})
    return Detectors(config, catalog.losses()[loss](), "efficientnet_lite0")


def test_a_sure_discriminator_is_found_once_after_a_tenth_of_the_run() -> None:
    found = looked(detectors(), [line(images, discriminator_loss=0.001) for images in range(500, 50_000, 500)])
    assert [(each.kind, each.images) for each in found] == [("discriminator-saturated", 10_500)]


def test_a_strong_start_and_a_guess_now_and_then_are_no_saturation() -> None:
    losses = [0.001] * 9 + [0.4] * 100
    assert looked(detectors(), [line(500 * i + 500, discriminator_loss=loss) for i, loss in enumerate(losses)]) == []
    guesses = [0.001 if i % 5 < 2 else 1.2 for i in range(200)]
    assert looked(detectors(), [line(500 * i + 500, discriminator_loss=loss) for i, loss in enumerate(guesses)]) == []


def test_few_steps_of_a_short_run_are_no_saturation() -> None:
    short = detectors(total_images=500)
    assert looked(short, [line(images, discriminator_loss=0.0) for images in range(10, 510, 10)]) == []


def test_each_game_is_judged_by_itself() -> None:
    lines = [line(500 * i, **{f"level-{8 if i % 2 else 16}/discriminator_loss": 0.001 if i % 2 else 0.9}) for i in range(1, 100)]
    found = looked(detectors(), lines)
    assert [each.kind for each in found] == ["discriminator-saturated"]
    assert "the discriminator of level-8 is sure" in found[0].message


def test_no_discriminator_is_judged_beside_a_reconstruction_or_without_a_range_or_in_a_warm_up() -> None:
    images = range(500, 50_000, 500)
    assert looked(detectors(), [line(at, discriminator_loss=0.0, reconstruction_loss=0.1) for at in images]) == []
    assert looked(detectors("wasserstein-gp"), [line(at, discriminator_loss=0.0) for at in images]) == []
    assert looked(detectors(), [line(at, warmup_loss=0.0) for at in images]) == []


# --- a generator that collapsed ---------------------------------------------------------------------------------------------------


def figures(diversity: float = 0.9, **changes: float) -> dict[str, float]:
    return {"kid": 1.0, "diversity": diversity, "precision": 0.6, "recall": 0.4, "num_evaluated": float(RECALL_IMAGES), **changes}


LATE = JUDGED_STEPS


def thrice(first: dict[str, float], step: int = LATE, last: dict[str, float] | None = None) -> str | None:
    """What is said of three evaluations, the first of them after so many steps."""
    return collapsed([(step, first), (step + LATE // 2, first), (step + LATE, last or first)])


def test_a_fall_of_diversity_is_told_at_once() -> None:
    told = collapsed([(10, figures(0.8)), (20, figures(0.3))])
    assert told is not None
    assert "generated images differ 0.30 times as much as real ones do, after 0.80 times" in told
    assert collapsed([(10, figures(0.8)), (20, figures(0.55))]) is None
    assert thrice(figures(0.4), last=figures(0.3)) is None, "it never was various"


def test_images_that_are_all_alike_are_told_where_they_stay_so() -> None:
    alike = figures(0.1, precision=0.0, recall=0.0)
    told = thrice(alike)
    assert told is not None
    assert "generated images differ only 0.10 times as much as real ones do" in told
    assert thrice(alike, LATE - 1) is None, "untrained images are alike"
    assert collapsed([(LATE, alike), (2 * LATE, alike)]) is None, "two looks are few"
    assert collapsed([(LATE, alike), (LATE + 10, alike), (2 * LATE - 1, alike)]) is None, "so are few steps"
    assert collapsed([(LATE, alike), (LATE + 10, figures(0.7)), (2 * LATE, alike)]) is None, "it comes and goes"
    assert thrice(alike, last=alike | {"kid": 0.89}) is None, "it learns still"
    assert thrice(alike, last=alike | {"kid": 0.91}) is not None
    assert thrice(figures(0.74), last=figures(0.5)) is None


def test_images_that_look_real_and_leave_the_real_ones_out_are_told() -> None:
    narrow = figures(precision=0.8, recall=0.01)
    told = thrice(narrow)
    assert told is not None
    assert "80 % of the generated images lie among real ones, and 1.0 % of the real ones among generated ones" in told
    assert thrice(narrow | {"precision": 0.2}) is None, "they do not look real yet"
    assert thrice(narrow | {"num_evaluated": RECALL_IMAGES - 1.0}) is None, "of few images recall says nothing"


def test_images_of_few_classes_are_told() -> None:
    few = figures(class_variety=0.1)
    told = thrice(few)
    assert told is not None
    assert "generated images are of 0.10 times as many classes as real ones" in told
    assert thrice(few, last=figures(class_variety=0.3)) is None


# --- a generator that repeats ------------------------------------------------------------------------------------------------------


def test_a_share_far_from_a_half_and_beyond_luck_is_told() -> None:
    told = memorising({"training_share": 0.93, "training_share_error": 0.07})
    assert told is not None
    assert "93 % of the generated images are nearer to an image that was trained on" in told
    assert "a standard error of 7 %" in told
    assert memorising({"training_share": 0.93, "training_share_error": 0.2}) is None, "luck"
    assert memorising({"training_share": 0.6, "training_share_error": 0.01}) is None, "a little nearer is usual"
    assert memorising({"diversity": 0.9}) is None


def test_findings_are_made_of_lines_with_the_extractors_name() -> None:
    name = "efficientnet_lite0"
    measured = {f"diversity_{name}": 0.9, f"precision_{name}": 0.5, f"recall_{name}": 0.5, "num_evaluated": 64.0}
    measured |= {"training_share": 1.0, "training_share_error": 0.1}
    evaluation = Metrics(images=5_000, seconds=0.0, evaluation=measured)
    found = looked(detectors(), [evaluation, evaluation.model_copy(update={"images": 6_000})])
    assert [(each.kind, each.images) for each in found] == [("memorising", 5_000)]
    assert looked(detectors(), [Metrics(images=5_000, seconds=0.0, evaluation={"psnr": 9.0, "psnr_baseline": 20.0})]) == []


# --- what is not finite ------------------------------------------------------------------------------------------------------------


def test_a_run_that_cannot_go_on_says_what_is_kept() -> None:
    found = not_finite("penalty is not finite at step 7; try a smaller learning_rate", {"checkpoints": 600, "best": 0}, 700)
    assert (found.kind, found.images) == ("not-finite", 700)
    assert found.message.endswith("and sound states are kept in checkpoints/000000000600 (600 images) of the run directory")
    assert not_finite("x", {"checkpoints": 0}, 0).message == "x; the run cannot go on from there, and there was no checkpoint before it"


# --- real runs -----------------------------------------------------------------------------------------------------------------------


class Ear(Listener):
    def __init__(self) -> None:
        self.told: list[Finding] = []

    def found(self, finding: Finding) -> None:
        self.told.append(finding)


@dataclass(frozen=True)
class Bench:
    """Runs of small networks on real images of clothes."""

    folder: Path

    def run(self, name: str, **changes: object) -> tuple[Path, JobStatus, list[Finding]]:
        widths = {"generator_widths": [64], "discriminator_widths": [64], "latent_size": 8}
        values = {
            "architecture": "mlp",
            "options": widths,
            "dataset": "small",
            "batch_size": 8,
            "total_images": 8 * 2 * JUDGED_STEPS,  # long enough to be judged to the last
            "num_evaluated": 64,
        }
        values |= {"evaluation_images": 4_000, "extractor": "fashion-classifier", "name": name}
        config = catalog.resolve(TrainConfig.model_validate(values | changes), self.folder / "datasets", ())
        runs.create(self.folder / name, config, name)
        ear = Ear()
        work(self.folder / name, self.places, CPU, ear, num_threads=1, memory_layout="contiguous")
        return self.folder / name, runs.read_status(self.folder / name), ear.told

    @property
    def places(self) -> Places:
        return Places(self.folder / "datasets", (self.folder / "models",), self.folder / "weights")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("detectors")
    images = np.array(datasets.load("fashion-mnist-10k", Path("nowhere")).images[:640])
    datasets.write("small", folder / "datasets", About((1, 28, 28), "a test", "CC0"), [Batch(images)])
    return Bench(folder)


@pytest.mark.parametrize("changes", [{}, {"loss": "hinge", "seed": 1}, {"loss": "relativistic", "seed": 2}], ids=str)
def test_a_healthy_run_is_left_alone(bench: Bench, changes: dict[str, object]) -> None:
    folder, status, told = bench.run(f"healthy-{changes.get('seed', 0)}", **changes)
    assert (status.state, status.findings, told) == ("succeeded", (), [])
    assert "WARNING" not in (folder / runs.LOG).read_text()
    measured = [line.evaluation for line in runs.read_metrics(folder) if line.evaluation]
    assert len(measured) == 4
    assert all(0 < values["training_share_error"] <= 0.5 for values in measured)


def test_a_discriminator_far_too_strong_is_found_in_the_log_and_the_status_and_told(bench: Bench) -> None:
    folder, status, told = bench.run("strong", total_images=4_000, discriminator={"learning_rate": 0.01}, generator={"learning_rate": 1e-6})
    assert status.state == "succeeded"
    assert "discriminator-saturated" in {each.kind for each in told}
    assert status.findings == tuple(told)
    assert f"WARNING discriminator-saturated: {told[0].message}" in (folder / runs.LOG).read_text()
    runs.write_status(folder, status.model_copy(update={"state": "running", "findings": ()}))
    work(folder, bench.places, CPU)
    assert runs.read_status(folder).findings == status.findings, "who goes on with a run knows what was found"


def test_a_learning_rate_of_one_is_found(bench: Bench) -> None:
    _, status, told = bench.run("one", learning_rate=1.0, total_images=4_000)
    assert told
    assert {each.kind for each in told} <= {"discriminator-saturated", "generator-collapsed", "not-finite"}
    assert status.findings == tuple(told)


def test_a_run_that_is_to_stop_where_it_collapses_publishes_its_best_state(bench: Bench) -> None:
    still = {"generator": {"learning_rate": 1e-12}, "options": {"generator_widths": [8], "discriminator_widths": [8], "latent_size": 2}}
    changes = {"extractor": "efficientnet-lite0", "total_images": 16_000, "evaluation_images": 2_000, "batch_size": 4}
    folder, status, told = bench.run("stopped", on_collapse="stop", **still, **changes)
    at = next(each.images for each in told if each.kind == "generator-collapsed")
    assert (status.state, status.progress.images) == ("succeeded", at)
    assert at < 16_000
    assert f"ended after {at:,} of 16,000, because the generator collapsed and on_collapse is stop" in status.message
    assert f"of {find_version('stopped', bench.places.repositories).metrics['images']:,.0f} images" in status.message
    before = runs.read_metrics(folder)
    runs.write_status(folder, status.model_copy(update={"state": "running", "model": None, "version": None}))
    work(folder, bench.places, CPU)
    again = runs.read_status(folder)
    assert (again.state, again.version, again.progress.images) == ("succeeded", 1, at), "one that died before it said so trains no further"
    assert runs.read_metrics(folder) == before


def test_weights_that_are_not_finite_are_not_kept(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    from training.loop import Training

    step = Training.step

    def step_and_break(self: Training) -> None:
        step(self)
        if self.images == 4_000:  # the losses of this step are finite, and those of the next would not be
            with torch.no_grad():
                next(self.matches["main"].game.generator.parameters()).fill_(float("nan"))

    monkeypatch.setattr(Training, "step", step_and_break)
    folder, status, told = bench.run("broken", checkpoint_images=2_000, evaluation_images=3_000)
    assert status.state == "failed"
    assert status.message.startswith("score_generated_after is not finite at step 500; try a smaller learning_rate")
    assert status.message.endswith(
        "kept in checkpoints/000000002000 (2,000 images) and best/000000003000 (3,000 images) of the run directory"
    )
    assert [(each.kind, each.message) for each in status.findings] == [("not-finite", status.message)]
    assert told == [], "a console says it as the error that ends the run"
    assert NotFiniteError.__name__ in (folder / runs.LOG).read_text()
