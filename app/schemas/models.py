"""Bodies of /models."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from app.choices import Backend
from app.schemas.common import Body
from training.contract import Manifest, TensorSpec


class AliasRequest(Body):
    """What an alias is to name."""

    model_config = ConfigDict(json_schema_extra={"example": {"version": 1}})

    version: Annotated[int, Field(ge=1)] | Annotated[str, Field(min_length=1, max_length=63)] = Field(
        description="A version's number, or an alias: `previous` is a way back."
    )
    share: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0, description="For the alias `canary`: the share of the requests that name no version, which it answers."
    )


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
