"""The rows of the quality table: what is trained on what, for how many images, and what "ours" and "plain" mean there."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import JsonValue

Changes = Mapping[str, JsonValue]  # fields of a TrainConfig


@dataclass(frozen=True)
class Row:
    """One architecture on one data set.

    num_seeds: runs of each recipe. classifier: who looks at 10,000 images of the served model, where there is one for the data.
    """

    name: str
    architecture: str
    dataset: str
    total_images: int
    num_seeds: int = 1
    extractor: str = "efficientnet-lite0"
    classifier: str | None = None
    ours: Changes = field(default_factory=dict)
    plain: Changes = field(default_factory=dict)


SETS = {
    "mnist": "`ganserve datasets add mnist`: 60,000 digits of 28x28",
    "fashion-mnist": "`ganserve datasets add fashion-mnist`: 60,000 items of 28x28",
    "dungeon-32": (
        "the 3,721 tiles of 32x32 below `dngn`, `item` and `mon` in the source of Dungeon Crawl Stone Soup 0.28.0 (mostly CC0), laid over"
        " black, a folder a class: `ganserve datasets add dungeon-32 FOLDER --size 32`"
    ),
    "avatars-32": (
        "10,000 avatars of DiceBear's style pixel-art (CC0 1.0), one a seed: `ganserve datasets add avatars-32 FOLDER --size 32`"
    ),
    "avatars-64": (
        "10,000 avatars of DiceBear's style pixel-art (CC0 1.0), one a seed, drawn at 64x64:"
        " `ganserve datasets add avatars-64 FOLDER --size 64`"
    ),
    "emoji-pairs-64": (
        "1,594 emoji of Fluent Emoji (MIT), high contrast and flat, drawn at 64x64 into `source` and `target`:"
        " `ganserve datasets add emoji-pairs-64 FOLDER --pairs --size 64`"
    ),
    "photographs-96": (
        "27 photographs out of Debian's lomiri-wallpapers-16.04, mate-backgrounds (nature) and plasma-workspace-wallpapers, halved until"
        " they have less than two megapixels, in 2,701 tiles; photographs are held out whole:"
        " `ganserve datasets add photographs-96 FOLDER --tiles --size 96`"
    ),
}

_PLAIN = {"recipe": False}  # nothing but the general defaults, which are DCGAN's: Adam 2e-4 (0.5, 0.999), non-saturating

ROWS = (
    Row(
        "mlp on digits",
        "mlp",
        "mnist",
        600_000,
        num_seeds=3,
        extractor="digits-classifier",
        classifier="digits-classifier",
        ours={"loss_options": {"label_smoothing": 0.1}},
    ),
    Row(
        "mlp on fashion",
        "mlp",
        "fashion-mnist",
        600_000,
        num_seeds=3,
        extractor="fashion-classifier",
        classifier="fashion-classifier",
        ours={"loss_options": {"label_smoothing": 0.1}},
    ),
    Row(
        "dcgan on fashion",
        "dcgan",
        "fashion-mnist",
        60_000,
        num_seeds=3,
        extractor="fashion-classifier",
        classifier="fashion-classifier",
        ours={"loss_options": {"label_smoothing": 0.1}},
    ),
    Row(
        "cgan on digits",
        "cgan",
        "mnist",
        200_000,
        num_seeds=3,
        extractor="digits-classifier",
        classifier="digits-classifier",
        plain={**_PLAIN, "options": {"conditioning": "embedding", "discriminator": "concatenation"}},
    ),
    Row(
        "cgan on fashion",
        "cgan",
        "fashion-mnist",
        100_000,
        num_seeds=3,
        extractor="fashion-classifier",
        classifier="fashion-classifier",
        plain={**_PLAIN, "options": {"conditioning": "embedding", "discriminator": "concatenation"}},
    ),
    Row("cifar on dungeon tiles", "cifar", "dungeon-32", 80_000, plain=_PLAIN),
    Row("cifar on avatars", "cifar", "avatars-32", 60_000, plain=_PLAIN),
    Row("lapgan on small avatars", "lapgan", "avatars-32", 100_000, plain={**_PLAIN, "options": {"generated_share": 0.0}}),
    Row("r3gan on avatars", "r3gan", "avatars-32", 40_000, plain=_PLAIN),
    Row(
        "r3gan-conditional on digits",
        "r3gan-conditional",
        "mnist",
        30_000,
        num_seeds=3,
        extractor="digits-classifier",
        classifier="digits-classifier",
        ours={"penalty_options": {"weight": 5.0}},
        plain=_PLAIN,
    ),
    Row(
        "dcgan on avatars",
        "dcgan",
        "avatars-64",
        80_000,
        ours={"options": {"generator_width": 32, "discriminator_width": 32}, "batch_size": 32},
        plain={"options": {"generator_width": 32, "discriminator_width": 32}, "batch_size": 32},
    ),
    Row("lapgan on avatars", "lapgan", "avatars-64", 60_000, plain={**_PLAIN, "options": {"generated_share": 0.0}}),
    Row("pix2pix on emoji", "pix2pix", "emoji-pairs-64", 30_000, plain={"learning_rate_schedule": "constant"}),
    Row(
        "srgan pixels alone on photographs",
        "srgan",
        "photographs-96",
        45_000,
        ours={"options": {"pixel_phase": 1.0}},
        plain={**_PLAIN, "options": {"pixel_phase": 1.0}},
    ),
    Row("srgan on photographs", "srgan", "photographs-96", 16_000, plain={"options": {"content": "none"}}),
)
