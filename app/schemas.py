"""Bodies of requests and answers, as OpenAPI shows them. Strict: `true` is no integer, unknown fields are refused."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from app.choices import Backend
from training.contract import DatasetCard, Finding, JobState, Manifest, Metrics, Seed, TensorSpec, TrainConfig

MAX_JSON_BYTES = 2**20
MAX_LATENT_BYTES = 16 * 2**20  # where a body may hold latents
MAX_UPLOAD_BYTES = 64 * 2**20
DEFAULT_IMAGES = 16
DEFAULT_IMAGES_A_CLASS = 8
MAX_IMAGES = 256
MAX_CANDIDATES = 4096
MAX_ANCHORS = 16
MAX_FRAMES = 256
MAX_FILES = 64

# a small grey picture, so that the example of /discriminate can be sent as it stands
EXAMPLE_PICTURE = (
    "UklGRngAAABXRUJQVlA4IGwAAAAQBACdASocABwAPwFur1ArJqSisAwBYCAJaQAAWlZqf2P+cQUdt+/jqAD+8qQehdCVSJOw6rEKXHdKOMBRt0"
    "+LnZU7QaQQzVp4S7eZIjjZt6Slt6aVFmWrmmSHDbz56aVS/muFZ01j84z/AAA="
)

Numbers = Annotated[list[JsonValue], Field(description="Nested lists of finite numbers.")]
Labels = list[str | int | dict[str, Annotated[float, Field(ge=0)]]]
ModelName = Annotated[str, Field(min_length=1, max_length=63, description="A model of GET /models.")]
Version = Annotated[
    Annotated[int, Field(ge=1)] | Annotated[str, Field(min_length=1, max_length=63)],
    Field(description="A version's number or an alias; `production`, else the newest, when left out."),
]
Truncation = Annotated[float, Field(ge=0, le=1, description="Scales latents towards their mean: 1 changes nothing, 0 is the mean image.")]
Columns = Annotated[int, Field(ge=1, le=MAX_IMAGES, description="Images in a row of the grid; near square when left out.")]


class Body(BaseModel):
    """A request's body."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class GenerateRequest(Body):
    """Images of consecutive seeds, or of explicit latents."""

    model_config = ConfigDict(json_schema_extra={"example": {"model": "digits", "num_images": 16, "seed": 7}})

    model: ModelName
    version: Version | None = None
    num_images: Annotated[int, Field(ge=1, le=MAX_IMAGES)] | None = Field(
        default=None, description='16 when left out, or as many as there are latents; 8 a class, as far as 256 go, with the labels "all".'
    )
    seed: Seed | None = Field(default=None, description="Image i has seed + i; drawn, and told, when left out.")
    latents: Annotated[Numbers, Field(max_length=MAX_IMAGES)] | None = Field(
        default=None, description="In place of a seed: one latent an image, as nested lists (num_images, *latent shape)."
    )
    labels: Labels | Literal["all"] | None = Field(
        default=None,
        description="For a model of classes: one for all images or one for each; a name, an index, or {name: weight}. "
        '"all" gives each class a row of the grid, in their order.',
    )
    truncation: Truncation | None = None
    best_of: Annotated[int, Field(ge=2, le=64)] | None = Field(
        default=None,
        description="Draw so many candidates an image, and keep the one that the discriminator rates highest. Image i is one of the seeds "
        f"from seed + i * best_of on, and its own is told. At most {MAX_CANDIDATES} candidates in all.",
    )
    part: Annotated[str, Field(min_length=1, max_length=63)] | None = Field(
        default=None, description="A served part of the model, in place of its generator: see `parts` of GET /models."
    )
    columns: Columns | None = None
    return_latents: bool = Field(default=False, description="Put the latents into the answer; only application/json has room for them.")


class TrainRequest(TrainConfig):
    """Everything that describes a training run; what is left out has the default that is shown."""

    model_config = ConfigDict(json_schema_extra={"example": {"name": "first-try", "architecture": "mlp", "total_images": 50_000}})


class DiscriminateRequest(Body):
    """Pictures in the form in which /generate's JSON gives them."""

    model_config = ConfigDict(json_schema_extra={"example": {"model": "digits", "images": [EXAMPLE_PICTURE]}})

    model: ModelName
    version: Version | None = None
    images: Annotated[list[str], Field(min_length=1, max_length=MAX_FILES, description="Base64 of PNG, JPEG, WebP, BMP or GIF files.")]
    labels: Labels | None = Field(default=None, description="Where the discriminator judges labels: one for all images or one for each.")
    sources: Annotated[list[str], Field(max_length=MAX_FILES)] | None = Field(
        default=None,
        description="Where the discriminator judges pairs: base64 of the picture that each image was made of, in order.",
    )


class TransformRequest(Body):
    """A picture to make another of."""

    model_config = ConfigDict(json_schema_extra={"example": {"model": "enhance", "image": EXAMPLE_PICTURE}})

    model: ModelName
    version: Version | None = None
    image: str = Field(description="Base64 of a PNG, JPEG, WebP, BMP or GIF file.")


class Anchor(Body):
    """A point to walk through: the latent of a seed, or an explicit one."""

    seed: Seed | None = None
    latent: Numbers | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.seed is None) == (self.latent is None):
            raise ValueError("an anchor is either {seed} or {latent}: give one of them")
        return self


class InterpolateRequest(Body):
    """Frames on the way from anchor to anchor."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"model": "digits", "anchors": [{"seed": 3}, {"seed": 11}, {"seed": 20}], "steps": 6}}
    )

    model: ModelName
    version: Version | None = None
    anchors: Annotated[list[Anchor], Field(min_length=2, max_length=MAX_ANCHORS)]
    steps: Annotated[int, Field(ge=0, le=MAX_FRAMES)] = Field(default=8, description="Frames between two neighbouring anchors.")
    method: Literal["slerp", "lerp"] = Field(
        default="slerp", description="slerp keeps the length of a normal latent, and with it the look; lerp is the straight line."
    )
    labels: Labels | None = Field(default=None, description="For a model of classes: one for all anchors or one for each.")
    truncation: Truncation | None = None
    layout: Literal["strip", "grid", "animation"] | None = Field(
        default=None, description="One row, rows of `columns`, or frames in time; a strip, or an animation where image/gif is accepted."
    )
    columns: Columns | None = None
    frames_per_second: Annotated[float, Field(ge=1, le=50)] | None = Field(default=None, description="Of an animation; 12 when left out.")
    return_latents: bool = Field(default=False, description="Put the latents into the answer; only application/json has room for them.")

    @property
    def num_frames(self) -> int:
        return (len(self.anchors) - 1) * (self.steps + 1) + 1

    @model_validator(mode="after")
    def _frames_are_bounded(self) -> Self:
        if self.num_frames > MAX_FRAMES:
            raise ValueError(
                f"{len(self.anchors)} anchors with {self.steps} steps are {self.num_frames} frames; at most {MAX_FRAMES} are allowed"
            )
        return self


class Pictures(BaseModel):
    """The application/json form of images."""

    model: str
    version: int
    seeds: list[int] | None = Field(description="One an image, which gives the same image alone; null where latents were given.")
    images: list[str] = Field(description="One PNG an image, base64.")
    latents: dict[str, JsonValue] | None = Field(default=None, description="By input name, (num_images, *shape), when asked for.")


class AliasRequest(Body):
    """What an alias is to name."""

    model_config = ConfigDict(json_schema_extra={"example": {"version": 1}})

    version: Annotated[int, Field(ge=1)] | Annotated[str, Field(min_length=1, max_length=63)] = Field(
        description="A version's number, or an alias: `previous` is a way back."
    )
    share: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0, description="For the alias `canary`: the share of the requests that name no version, which it answers."
    )


class Score(BaseModel):
    """What the discriminator says of one file, and what that means."""

    file: str
    score: float = Field(description="The discriminator's output, a logit or a critic's value; the mean over patches where it has several.")
    probability: float | None = Field(description="Of being real, for a logit; null for a critic, whose scale means nothing.")
    percentile_real: float | None = Field(description="Share of held-out real images that score lower, in percent.")
    percentile_generated: float | None = Field(description="Share of generated images that score lower, in percent.")


class Scores(BaseModel):
    """One score a file, in the order of the files."""

    model: str
    version: int
    scores: list[Score]


class PartCard(BaseModel):
    """A further module of a version."""

    name: str
    inputs: list[TensorSpec]
    output: TensorSpec
    served: bool = Field(description="Whether /generate can run it, as `part`; each one can be fetched.")


class ModelCard(BaseModel):
    """A model, by the version that answers where none is named."""

    name: str
    version: int
    versions: list[int]
    aliases: dict[str, int]
    canary_share: float | None = Field(description="Of the requests that name no version, which the alias `canary` answers.")
    loaded: bool = Field(description="Whether it answers at once; it is loaded when it is asked for, else.")
    num_bytes: int = Field(description="Of its modules' weights: what it takes of --model-memory-megabytes.")
    architecture: str
    source: str
    inputs: list[TensorSpec] = Field(description="Of the generator, in call order.")
    output: TensorSpec
    has_discriminator: bool
    conditions: list[TensorSpec] = Field(description="What the discriminator judges beside the picture: `labels` or `sources`.")
    transforms: bool = Field(description="Whether it makes a picture of a picture, by /transform.")
    parts: list[PartCard]
    batch_sizes: dict[str, list[int]] = Field(
        description="Padded batch sizes that were proved to give every row the same bits; empty while it is not loaded."
    )
    backends: dict[str, Backend] = Field(description="How each module is run here; empty while it is not loaded.")
    dataset: str
    created_at: str


class BrokenVersion(BaseModel):
    """A version that is not served, and why."""

    name: str
    version: int | None
    reason: str


class Models(BaseModel):
    """Everything that is served, and everything that was left out."""

    models: list[ModelCard]
    broken: list[BrokenVersion]


class ModelAliases(BaseModel):
    """What a model's aliases name."""

    name: str
    version: int = Field(description="The version that answers where none is named.")
    aliases: dict[str, int]
    canary_share: float | None


class VersionFigures(BaseModel):
    """A version in a few words."""

    version: int
    architecture: str
    dataset: str
    metrics: dict[str, float]
    created_at: str


class ModelVersions(ModelCard):
    """A model with all its versions."""

    history: list[VersionFigures] = Field(description="Oldest first.")


class VersionCard(BaseModel):
    """A version's manifest, and the command that trains it again."""

    manifest: Manifest
    command: str


class JobProgress(BaseModel):
    """How far a job is."""

    images: int
    total_images: int
    percent: float
    images_per_second: float | None
    seconds_left: float | None
    losses: dict[str, float]
    evaluation: dict[str, float] = Field(description="The last one, on held-out images.")


class Job(BaseModel):
    """A training job."""

    id: str
    state: JobState
    position: int | None = Field(description="Place in the queue, from 1; null unless queued.")
    progress: JobProgress
    attempts: int
    message: str
    findings: list[Finding] = Field(description="What went wrong on the way, one a kind, oldest first; empty where all is well.")
    model: str | None = Field(description="The name it published under, once it has.")
    version: int | None
    created_at: str
    started_at: str | None
    finished_at: str | None
    config: TrainConfig | None = Field(description="Every default resolved; null where the job's file of it is damaged.")


class Jobs(BaseModel):
    """Newest first."""

    jobs: list[Job]
    next: str | None = Field(description="The `after` of the next page; null on the last one.")


class JobMetrics(BaseModel):
    """What a job has measured so far."""

    metrics: list[Metrics] = Field(description="Means over the steps since the line before, and evaluations on held-out images.")
    samples: list[int] = Field(description="Of how many images there are sample grids: GET /jobs/{id}/samples/{images}.png.")


class ArchitectureCard(BaseModel):
    """An architecture, and what may be said of it in a config."""

    name: str
    summary: str
    source: str
    inputs: list[str] = Field(description="The kinds of the generator's inputs.")
    conditions: list[str] = Field(description="The kinds of what its discriminator judges beside the image.")
    options: dict[str, JsonValue] = Field(description="JSON schema of `options`.")
    losses: list[str] = Field(description="Those that it can be trained with.")
    penalties: list[str] = Field(description="Those that it can be trained with.")
    recipe: dict[str, JsonValue] = Field(description="Fields of the config that have another default here.")
    refused: dict[str, str] = Field(description="What it cannot be trained with, and why.")


class LossCard(BaseModel):
    """An adversarial loss, and what may be said of it in a config."""

    name: str
    summary: str
    source: str
    options: dict[str, JsonValue] = Field(description="JSON schema of `loss_options`.")
    recipe: dict[str, JsonValue] = Field(description="Fields of a config that have another default with it.")
    refused: dict[str, str] = Field(description="Parts of a config that it cannot be used with, and why.")


class PenaltyCard(BaseModel):
    """A penalty on the discriminator's gradient, and what may be said of it in a config."""

    name: str
    summary: str
    source: str
    options: dict[str, JsonValue] = Field(description="JSON schema of `penalty_options`.")


class PresetCard(BaseModel):
    """A named config, made for one purpose."""

    name: str
    summary: str
    config: dict[str, JsonValue] = Field(description="What a config with this preset says where the user says nothing.")


class Architectures(BaseModel):
    """Everything that can be trained here."""

    architectures: list[ArchitectureCard]
    losses: list[LossCard]
    penalties: list[PenaltyCard]
    presets: list[PresetCard]
    extractors: dict[str, str] = Field(description="By name, where the weights come from that an evaluation takes its features from.")
    datasets: list[DatasetCard]


class Health(BaseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    """Whether the models are loaded."""

    status: Literal["ready", "loading"]
    device: str
    models: list[str] = Field(description="Those that answer; what is kept out by --model-memory-megabytes is loaded when it is asked for.")
    loading: list[str] = Field(description="Those that are yet to be loaded, in any order; a request for one waits, and goes first.")
