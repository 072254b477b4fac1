"""What goes wrong in a run, told from its lines of metrics alone: a run that goes on from a checkpoint finds again what it had found.

A finding says the figure, what it means and what to try. No alarm in a healthy run counts for more than an early one in a sick run, so
that what looks the same when a run has only begun (an untrained generator makes all images alike) is not judged then.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch

from training.contract import Finding, Metrics, TrainConfig
from training.loop import NotFiniteError, Training
from training.losses import AdversarialLoss

# The discriminator's loss, 0 where it is sure of every image and 1 where it guesses. 0.03 is a probability of 0.98 for real images and of
# 0.02 for generated ones; the plain cgan, whose discriminator is strong and whose digits are well recognised, stays above 0.06.
SURE = 0.03
# The median of at least so many lines of metrics over so much of the run and so many steps: a strong start is usual, and single batches
# that fool a saturated discriminator are, too.
SURE_LINES, SURE_SHARE, SURE_STEPS = 20, 0.1, 100

# Steps of the generator before it is judged, and over which: untrained generators have the figures of collapsed ones.
JUDGED_STEPS = 1000
LOOKS, STANDSTILL = 3, 0.9  # evaluations, and KID relative to the first of them: a generator that still learns is left alone
# Mean distances of generated images relative to real ones'. Healthy runs rise to 0.8 and more, and stay there.
VARIOUS, UNVARIED = 0.75, 0.5
ALIKE = 0.25  # hardly learned anything in so many steps, or lost all of it
REALISTIC, FORGOTTEN = 0.5, 0.05  # precision and recall: images look real, and next to no real image is among them
RECALL_IMAGES = 200  # of fewer images nearest neighbours are so far that recall is next to nothing for good ones too
FEW_CLASSES = 0.2  # classes as good as made, relative to the data's: two of ten; small networks that learn still make three

# Of generated images that lie nearer to one that was trained on than to all held-out ones: two small networks that had learned 50 images by
# heart had 0.81 (3.4 standard errors) and 0.97 (4.1), healthy ones 0.46 to 0.56. Beyond luck: one lot in 740 is three errors from a half.
COPIED_SHARE, COPIED_ERRORS = 0.7, 3.0

Kind = Literal["not-finite", "discriminator-saturated", "generator-collapsed", "memorising"]
Figures = Mapping[str, float]


class Detectors:
    """Looks at one line of metrics after the other. A kind of finding is made once, where it is seen first.

    Where generated images have their own targets (images to images), evaluations have none of the figures by which collapse and
    memorising are told: neither is judged. A discriminator beside a reconstruction loss may be sure of itself without harm, and is
    not judged, nor one whose loss has no least value (Wasserstein).
    """

    def __init__(self, config: TrainConfig, loss: AdversarialLoss, suffix: str) -> None:
        """suffix: of the names of measures, see FeatureExtractor."""
        self._config, self._suffix = config, suffix
        self._range = loss_range(loss)
        self._sure: dict[str, list[tuple[int, float]]] = {}  # by game: images, and the loss between sure and guessing
        self._evaluations: list[tuple[int, Figures]] = []  # steps, and figures without the extractor's name
        self._found: set[Kind] = set()

    def look(self, line: Metrics) -> list[Finding]:
        """What this line shows and no line before it did."""
        told: dict[Kind, str | None] = {}
        if line.losses:
            told["discriminator-saturated"] = self._saturated(line)
        if line.evaluation:
            figures = {name.replace(f"_{self._suffix}", ""): value for name, value in line.evaluation.items()}
            self._evaluations.append((self._steps(line.images), figures))
            told |= {"generator-collapsed": collapsed(self._evaluations), "memorising": memorising(figures)}
        found = [Finding(kind=kind, images=line.images, message=text) for kind, text in told.items() if text and kind not in self._found]
        self._found.update(finding.kind for finding in found)
        return found

    def _steps(self, images: int) -> int:
        return images // (self._config.batch_size * self._config.critic_steps)

    def _saturated(self, line: Metrics) -> str | None:
        game, terms = _terms(line.losses)
        if self._range is None or "discriminator_loss" not in terms or "reconstruction_loss" in terms:
            return None
        guess, least = self._range
        lines = self._sure.setdefault(game, [])
        lines.append((line.images, (terms["discriminator_loss"] - least) / (guess - least)))
        step = self._config.batch_size * self._config.critic_steps
        span = max(SURE_SHARE * self._config.total_images, SURE_STEPS * step)
        while len(lines) > SURE_LINES and lines[1][0] <= line.images - span:
            del lines[0]
        if line.images - lines[0][0] < span:
            return None
        return saturated([value for _, value in lines], f"the discriminator of {game}" if game else "the discriminator")


def _terms(losses: Mapping[str, float]) -> tuple[str, dict[str, float]]:
    """The game that is played, "" where there is only one, and its terms by their plain names."""
    game = next(iter(losses)).rpartition("/")[0]
    return game, {name.rpartition("/")[2]: value for name, value in losses.items()}


def loss_range(loss: AdversarialLoss) -> tuple[float, float] | None:
    """The discriminator's loss where it scores all images alike, at 0, and the least that it can be; None where it can fall without end."""

    def least(bound: float) -> float:
        scores = torch.linspace(-bound, bound, 401)
        pairs = torch.cartesian_prod(scores, scores)[:, :, None]
        judge: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = loss.discriminator
        return float(torch.vmap(judge)(pairs[:, 0], pairs[:, 1]).min())

    guess, near, far = float(loss.discriminator(torch.zeros(1), torch.zeros(1))), least(20.0), least(40.0)
    return (guess, near) if near - far < 0.01 * (guess - near) else None


def check_finite_weights(training: Training) -> None:
    """A state that is kept must be sound: a step whose losses were finite may have moved weights to where they are not.

    Raises:
        NotFiniteError: it names the network and the step.
    """
    for key, match in training.matches.items():
        for player, network in (("generator", match.game.generator), ("discriminator", match.game.discriminator)):
            if not all(bool(value.isfinite().all()) for value in network.state_dict().values()):
                who = f"{key}/{player}" if len(training.matches) > 1 else player
                raise NotFiniteError(f"a weight of the {who} is not finite after step {training.steps:,}; try a smaller learning_rate")


def not_finite(error: str, kept: Mapping[str, int], images: int) -> Finding:
    """Of a run that ends here.

    Args:
        error: names the term and the step, and says what to try.
        kept: a folder of the run directory -> of how many images the newest state there is; 0 where there is none.
    """
    states = [f"{folder}/{number:012d} ({number:,} images)" for folder, number in kept.items() if number]
    left = f"sound states are kept in {' and '.join(states)} of the run directory" if states else "there was no checkpoint before it"
    return Finding(kind="not-finite", images=images, message=f"{error}; the run cannot go on from there, and {left}")


def saturated(shares: Sequence[float], who: str = "the discriminator") -> str | None:
    """What to say of a discriminator's losses on consecutive lines of metrics, each 0 where it is sure and 1 where it guesses."""
    if len(shares) < SURE_LINES or (middle := statistics.median(shares)) >= SURE:
        return None
    return (
        f"{who} is sure of nearly every image: over the last {len(shares)} lines of metrics its loss was {100 * max(0.0, middle):.1f} % of"
        " that of a guess (the median), and the generator learns next to nothing from it; try a smaller learning_rate for the discriminator"
        " or for both, a penalty, spectral_norm, or diff_augment where images are few"
    )


def collapsed(evaluations: Sequence[tuple[int, Figures]]) -> str | None:
    """What to say of the last of these evaluations (steps of the generator, figures), which are all so far.

    A fall from images as various as real ones is told at once. What a generator may show that has learned little yet must be so at
    LOOKS evaluations at least, one after the other, over JUDGED_STEPS that follow JUDGED_STEPS, while KID falls by less than a tenth.
    """
    now = evaluations[-1][1]
    if "diversity" not in now:
        return None
    reached = max(figures["diversity"] for _, figures in evaluations)
    if reached >= VARIOUS and now["diversity"] < UNVARIED:
        looks: str | None = f"generated images differ {now['diversity']:.2f} times as much as real ones do, after {reached:.2f} times"
    else:
        start = [row for row, (steps, _) in enumerate(evaluations) if JUDGED_STEPS <= steps <= evaluations[-1][0] - JUDGED_STEPS]
        last = [figures for _, figures in evaluations[start[-1] :]] if start else []
        lasting = len(last) >= LOOKS and all(_one_look(figures) for figures in last)
        looks = _one_look(now) if lasting and now["kid"] > STANDSTILL * last[0]["kid"] else None
    if looks is None:
        return None
    return (
        f"the generator has collapsed: {looks}; it makes few kinds of images, and seldom recovers: try a smaller learning_rate, a penalty"
        " (r1-r2), loss relativistic, a larger batch_size, or diff_augment where images are few"
    )


def _one_look(figures: Figures) -> str | None:
    """What is wrong with the variety of one evaluation's images."""
    if figures["diversity"] < ALIKE:
        return f"generated images differ only {figures['diversity']:.2f} times as much as real ones do"
    if figures["precision"] < REALISTIC:
        return None  # they do not look real either: not learned yet
    if figures["recall"] < FORGOTTEN and figures["num_evaluated"] >= RECALL_IMAGES:
        looks = f"{100 * figures['precision']:.0f} % of the generated images lie among real ones"
        return f"{looks}, and {100 * figures['recall']:.1f} % of the real ones among generated ones"
    if figures.get("class_variety", 1.0) < FEW_CLASSES:
        return f"generated images are of {figures['class_variety']:.2f} times as many classes as real ones"
    return None


def memorising(figures: Figures) -> str | None:
    """What to say of one evaluation's share of generated images that are nearest to one that was trained on."""
    if "training_share" not in figures:
        return None
    share, error = figures["training_share"], figures["training_share_error"]
    if share < COPIED_SHARE or share - 0.5 < COPIED_ERRORS * error:
        return None
    return (
        f"{100 * share:.0f} % of the generated images are nearer to an image that was trained on than to all of as many held-out ones (50 %"
        f" are expected, with a standard error of {100 * error:.0f} %): the model repeats the images it was trained on; try more images,"
        " diff_augment (color, translation, cutout), fewer total_images or smaller networks"
    )
