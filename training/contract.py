"""Every document that training and serving share, on disk or on the wire. Imports no torch.

A model can be served by a process that knows only these documents and the files they name.
"""

import re
from datetime import UTC, datetime
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, WithJsonSchema, model_validator

MAX_SEED = 2**32 - 1  # torch's CPU generator ignores higher bits
NAME_PATTERN = r"^[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?$"


class UserError(Exception):
    """The user's mistake, not ours: the message is one sentence that says what was given, what is allowed and what to do."""


def now() -> str:
    """The time in UTC, ISO 8601, to the second: 2026-11-22T10:45:00Z."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def is_name(text: str) -> bool:
    """Whether the text may name a model, an alias, a dataset or a run: small letters, digits, `.`, `_`, `-`; 1 to 63 characters."""
    return re.fullmatch(NAME_PATTERN, text) is not None


def _name(text: str) -> str:
    if not is_name(text):
        raise ValueError("1 to 63 small letters, digits, '.', '_' and '-' are allowed, a letter or digit first and last")
    return text


def _bare_file_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", text):
        raise ValueError("a bare file name of letters, digits, '.', '_', '-' is allowed")
    return text


Format = Literal["torchscript", "onnx"]  # of a module's file
Name = Annotated[str, AfterValidator(_name), WithJsonSchema({"type": "string", "pattern": NAME_PATTERN})]
FileName = Annotated[str, AfterValidator(_bare_file_name)]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
# JSON has lists only: the container is lax, so that a list may become a tuple, its items stay strict
Betas = Annotated[
    tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]],
    Field(strict=False),
]
Shape = Annotated[tuple[int, ...], Field(strict=False)]


class Document(BaseModel):
    """Frozen, strict (`true` is no integer), closed to unknown fields and to numbers that are not finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


# --- what a served module takes and gives -------------------------------------------------------------------------------------


class TensorSpec(Document):
    """One tensor of a served module, float32, without its batch axis. Images are in [-1, 1].

    `name` equals the argument's name in the TorchScript file; -1 in `shape` is a free axis.
    """

    name: str
    kind: Literal["latent", "label", "image", "logit", "critic"]
    shape: Shape
    distribution: Literal["normal", "uniform"] | None = None  # latents; uniform is over [-1, 1]
    classes: tuple[str, ...] | None = None  # labels: float weights over the classes, so that labels can be mixed
    # images with free axes:
    size_multiple: Annotated[int, Field(ge=1)] = 1  # height and width are multiples of it
    halo: Annotated[int, Field(ge=0)] | None = None  # input pixels around a tile that its output depends on; None: the whole image
    scale: Annotated[int, Field(ge=1)] = 1  # output pixels a side to one input pixel


class FileSpec(Document):
    file: FileName
    sha256: Sha256
    size_bytes: int


class Probe(Document):
    """Known values of a module: for `probe_inputs(spec, num_rows, seed)`, the flattened output by `probe_step` is `expected`."""

    seed: Seed
    num_rows: int
    expected: tuple[float, ...]
    tolerance: float  # relative above 1, absolute below; another processor's kernels differ in the last bits


class ModuleSpec(Document):
    """A module as it is served: `files` by format ("torchscript" always), declared inputs in call order, the output, and a probe."""

    files: dict[Format, FileSpec]
    inputs: tuple[TensorSpec, ...]
    output: TensorSpec
    probe: Probe


# --- data ---------------------------------------------------------------------------------------------------------------------


PictureSize = Annotated[tuple[int, int], Field(strict=False)]  # width, height


class OriginalSizes(Document):
    """Of the pictures that became images of one shape, by their number of pixels."""

    smallest: PictureSize
    median: PictureSize
    largest: PictureSize


class DatasetCard(Document):
    """What is known of a set of images. `content_sha256` is over all that is in it, so it names the content wherever it lies.

    A paired set has a source image for every image. Images of one group (tiles of one photograph) are held out together. What older
    cards do not say is None.
    """

    schema_version: Literal[1] = 1
    name: Name
    num_images: Annotated[int, Field(ge=1)]
    shape: Shape  # (channels, height, width) of every image
    source_shape: Shape | None = None  # (channels, height, width) of every source image of a paired set
    class_names: tuple[str, ...] | None = None
    class_counts: tuple[int, ...] | None = None  # images of each class
    num_groups: Annotated[int, Field(ge=1)] | None = None
    num_captions: int | None = None  # images that have one; None where the set has no captions
    num_duplicates: int | None = None  # images whose pixels equal an earlier one's; they are kept
    original_sizes: OriginalSizes | None = None
    content_sha256: Sha256
    source: str
    licence: str
    notes: tuple[str, ...] = ()  # sentences about the whole set
    skipped: tuple[str, ...] = ()  # one sentence for each file that was left out: which and why
    num_skipped: int | None = None  # where they are more than are named
    files: dict[Literal["images", "labels", "sources", "groups", "captions"], FileSpec]
    created_at: str


# --- training -----------------------------------------------------------------------------------------------------------------


class OptimizerConfig(Document):
    """Adam's settings for one of the two networks; what is left out follows the run's own."""

    learning_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    betas: Betas | None = None


class Improvement(Document):
    """A condition: a measure is better than that of the version which an alias names; met where it names none."""

    metric: str = Field(description="A measure of the manifest by its whole name or a short one: kid, fd, precision, recall, psnr, ...")
    better_than: str = Field(description="An alias: production, say.")


class PublishConfig(Document):
    """What becomes of an alias when the version is published."""

    model_config = ConfigDict(serialize_by_alias=True)

    alias: str | None = Field(default=None, description="The alias to point at the version; none is, when left out.")
    condition: Improvement | None = Field(default=None, alias="if", description="Point it only where this holds.")


FEWEST_EVALUATED = 6  # images of each kind: every one has five neighbours
Formats = Annotated[tuple[Literal["onnx"], ...], Field(strict=False, max_length=1)]
Augmentations = Annotated[tuple[Literal["color", "translation", "cutout"], ...], Field(strict=False, max_length=3)]


class TrainConfig(Document):
    """Everything that describes a training run: the body of POST /train, the flags of `ganserve train`, the record in the manifest."""

    name: Name | None = Field(default=None, description="Model name to publish under; `<architecture>-<dataset>` when left out.")
    architecture: str = Field(default="dcgan", description="An architecture of GET /architectures.")
    preset: str | None = Field(default=None, description="What is left out follows this named config, of GET /architectures, first of all.")
    recipe: bool = Field(
        default=True, description="What is left out follows the recipes of the architecture and the loss; else the defaults shown here."
    )
    options: dict[str, JsonValue] = Field(default={}, description="The architecture's own options, see GET /architectures.")
    loss: str = Field(default="non-saturating", description="An adversarial loss of GET /architectures.")
    loss_options: dict[str, JsonValue] = Field(default={}, description="The loss's own options, see GET /architectures.")
    penalty: str = Field(default="none", description="A penalty on the discriminator's gradient, of GET /architectures.")
    penalty_options: dict[str, JsonValue] = Field(default={}, description="The penalty's own options, see GET /architectures.")
    penalty_interval: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=1, description="Penalties are added at every so many-th step of the discriminator, that many times as heavy: faster."
    )
    spectral_norm: bool = Field(
        default=False, description="Divide each weight of the discriminator by its largest singular value; it takes the place of its norms."
    )
    diff_augment: Augmentations = Field(
        default=(), description="Differentiable augmentation of what the discriminator sees: color, translation, cutout; for small sets."
    )
    dataset: Name = Field(default="fashion-mnist-10k", description="A registered data set; never a path or an address.")
    dataset_sha256: Sha256 | None = Field(
        default=None, description="The content hash of the data set's card, which a run is bound to; where it is given, it must be that."
    )
    hold_out: Annotated[float, Field(gt=0, le=0.5)] = Field(
        default=0.1, description="Share of the images that is never trained on; at least 64 images, at most 10,000."
    )
    total_images: Annotated[int, Field(ge=1, le=10**12)] = Field(
        default=500_000, description="Real images shown to the discriminator, repeats counted."
    )
    batch_size: Annotated[int, Field(ge=2, le=65536)] = Field(default=64, description="Images a step.")
    learning_rate: Annotated[float, Field(gt=0, le=1)] = Field(default=2e-4, description="Adam's step size, both networks.")
    betas: Betas = Field(default=(0.5, 0.999), description="Adam's decay rates, both networks.")
    learning_rate_schedule: Literal["constant", "linear", "cosine"] = Field(
        default="constant", description="linear: constant for the first half, then straight to 0; cosine: half a wave from full to 0."
    )
    generator: OptimizerConfig = Field(default=OptimizerConfig(), description="Optimiser settings of the generator alone.")
    discriminator: OptimizerConfig = Field(default=OptimizerConfig(), description="Optimiser settings of the discriminator alone.")
    critic_steps: Annotated[int, Field(ge=1, le=100)] = Field(
        default=1, description="Discriminator steps to one of the generator, each on a fresh batch."
    )
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="bfloat16: layers compute in half the bits where that is safe, for devices that can; float32 is TF32 where one is.",
    )
    ema_halflife_images: Annotated[float, Field(ge=0)] = Field(
        default=10_000.0, description="Half-life of the moving average of the generator's weights, in images; 0 publishes the last weights."
    )
    seed: Seed = Field(default=0, description="Seed of every random choice of the run.")
    initial_model: str | None = Field(
        default=None, description="A published version to start from (fine-tuning): `name`, `name/3` or `name/production`."
    )
    checkpoint_images: Annotated[int, Field(ge=1)] = Field(default=100_000, description="Images between checkpoints.")
    sample_images: Annotated[int, Field(ge=1)] = Field(default=50_000, description="Images between sample grids of the fixed latents.")
    evaluation_images: Annotated[int, Field(ge=1)] = Field(
        default=100_000,
        description="Images between evaluations on held-out images, in a run's last phase; the best is published. One is at the end.",
    )
    num_evaluated: Annotated[int, Field(ge=0, le=50_000)] = Field(
        default=1000,
        description="Generated images of an evaluation, against as many held-out ones; 0 for none, which publishes the last weights.",
    )
    on_collapse: Literal["stop", "continue"] = Field(
        default="continue", description="stop: end at the first evaluation that finds the generator collapsed, and publish the best state."
    )
    formats: Formats = Field(
        default=(), description="Files of the published networks beside TorchScript: onnx, which needs the extra of that name."
    )
    publish: PublishConfig = Field(default=PublishConfig(), description="What becomes of an alias when the version is published.")
    extractor: str = Field(
        default="efficientnet-lite0", description="Whose features KID and Frechet distance are measured on, see GET /architectures."
    )

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        if self.total_images < self.batch_size:
            raise ValueError(f"total_images {self.total_images} is less than one batch of {self.batch_size}: give at least batch_size")
        if 0 < self.num_evaluated < FEWEST_EVALUATED:
            raise ValueError(f"num_evaluated {self.num_evaluated} is too few to compare: give {FEWEST_EVALUATED} at least, or 0 for none")
        if self.on_collapse == "stop" and not self.num_evaluated:
            raise ValueError("on_collapse stop has no effect without evaluations: give num_evaluated, or leave on_collapse out")
        if len(set(self.diff_augment)) < len(self.diff_augment):
            raise ValueError(f"diff_augment {', '.join(self.diff_augment)} names one twice, which has no effect: name each once")
        return self

    def num_held_out(self, num_images: int) -> int:
        """How many of a set's images are never trained on."""
        return min(10_000, max(64, round(num_images * self.hold_out)))

    @property
    def model_name(self) -> str:
        """The name the model is published under."""
        return self.name or f"{self.architecture}-{self.dataset}"[:63].rstrip("._-")


class Progress(Document):
    images: int = 0
    total_images: int
    images_per_second: float | None = None
    seconds_left: float | None = None
    losses: dict[str, float] = {}  # means over the last window of steps
    evaluation: dict[str, float] = {}  # the last one

    @property
    def percent(self) -> float:
        """A run ends with a whole batch, which may be more images than it was asked for: at most 100."""
        return min(100.0, 100.0 * self.images / self.total_images)


class Finding(Document):
    """Something that goes wrong in a run: when it was seen first, with the figure, what it means and what to try."""

    kind: Literal["not-finite", "discriminator-saturated", "generator-collapsed", "memorising"]
    images: int
    message: str


JobState = Literal["queued", "running", "paused", "succeeded", "failed", "cancelled"]
FINISHED: frozenset[JobState] = frozenset({"succeeded", "failed", "cancelled"})


MemoryLayout = Literal["contiguous", "channels-last"]


class Tuning(Document):
    """What a trainer's speed depends on; chosen at its first start and kept, since another choice means other last bits."""

    num_threads: Annotated[int, Field(ge=1)]  # intra-op
    memory_layout: MemoryLayout
    compiled: bool = False  # by torch.compile


class JobStatus(Document):
    """`status.json` of a job or run directory; replaced whole, by one rename."""

    schema_version: Literal[1] = 1
    id: str
    state: JobState
    progress: Progress
    priority: int = 0  # among the jobs of a service
    place: int = 0  # in its queue
    attempts: int = 0
    tuning: Tuning | None = None
    message: str = ""
    findings: tuple[Finding, ...] = ()  # one a kind, oldest first
    model: Name | None = None
    version: int | None = None
    created_at: str
    started_at: str | None = None
    finished_at: str | None = None


class Metrics(Document):
    """One line of `metrics.jsonl`: means over the steps since the line before, or an evaluation on held-out images."""

    images: int
    seconds: float  # of training, over all attempts
    images_per_second: float | None = None
    losses: dict[str, float] = {}
    evaluation: dict[str, float] = {}


# --- a published version ------------------------------------------------------------------------------------------------------


class ScoreReference(Document):
    """Quantiles of the discriminator's score, evenly spaced from the minimum to the maximum, ascending."""

    real: tuple[float, ...]  # of held-out real images, which were never trained on
    generated: tuple[float, ...]
    num_real: int
    num_generated: int


class Manifest(Document):
    """`manifest.json` of a version directory: what it is, how it was made, and every file that may be opened."""

    schema_version: Literal[1] = 1
    name: Name
    version: Annotated[int, Field(ge=1)]
    run: str  # the training run that made it; a run publishes once
    architecture: str
    source: str  # the paper
    generator: ModuleSpec
    discriminator: ModuleSpec | None
    parts: dict[Name, ModuleSpec] = {}  # further modules, by name: listed, and served where they take what the generator takes
    config: TrainConfig  # every default resolved
    dataset: DatasetCard
    metrics: dict[str, float]
    score_reference: ScoreReference | None
    samples: FileSpec  # a grid of images, PNG
    created_at: str
    torch_version: str

    @model_validator(mode="after")
    def _names_no_manifest(self) -> Self:
        if "manifest.json" in self.all_files:
            raise ValueError("a manifest does not name itself among its files")
        return self

    @property
    def all_files(self) -> dict[str, FileSpec]:
        """Every file that it names, by its name."""
        modules = [self.generator, *([self.discriminator] if self.discriminator else []), *self.parts.values()]
        return {file.file: file for file in [*(file for module in modules for file in module.files.values()), self.samples]}
