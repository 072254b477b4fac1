"""Bodies of /generate, /interpolate, /transform and /discriminate."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from app.schemas.common import Body, ModelName, Version
from training.contract import Seed

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
Truncation = Annotated[float, Field(ge=0, le=1, description="Scales latents towards their mean: 1 changes nothing, 0 is the mean image.")]
Columns = Annotated[int, Field(ge=1, le=MAX_IMAGES, description="Images in a row of the grid; near square when left out.")]


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
