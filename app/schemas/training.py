"""Bodies of /train, /jobs and /architectures."""

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from training.contract import DatasetCard, Finding, JobState, Metrics, TrainConfig


class TrainRequest(TrainConfig):
    """Everything that describes a training run; what is left out has the default that is shown."""

    model_config = ConfigDict(json_schema_extra={"example": {"name": "first-try", "architecture": "mlp", "total_images": 50_000}})


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
    priority: int = Field(description="Jobs of a higher one go first.")
    progress: JobProgress
    attempts: int
    message: str
    log_end: str | None = Field(description="Of a failed job: the last lines of its log; GET /jobs/{id}/log has more.")
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
