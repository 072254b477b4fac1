"""Bodies of /datasets/{name}/augment."""

from typing import Annotated, Self

from pydantic import ConfigDict, Field, model_validator

from app.schemas.common import Body, ModelName, Version
from app.schemas.inference import Truncation
from training.contract import Name, Seed

MAX_GENERATED = 100_000  # images of one request


class AugmentRequest(Body):
    """Labelled images of a model's, for the classes of a data set."""

    model_config = ConfigDict(json_schema_extra={"example": {"model": "classes", "images_per_class": 100, "seed": 7}})

    model: ModelName
    version: Version | None = None
    num_images: Annotated[int, Field(ge=1, le=MAX_GENERATED)] | None = Field(
        default=None, description="In all, of every class as many: a multiple of the classes."
    )
    images_per_class: Annotated[int, Field(ge=1, le=MAX_GENERATED)] | None = Field(
        default=None,
        description="Of every class so many. Without this and num_images, every class gets what it lacks to be as large as the largest.",
    )
    seed: Seed | None = Field(
        default=None, description="Of the first image, class after class; each image's own is told. Drawn, and told, when left out."
    )
    truncation: Truncation | None = None
    best_of: Annotated[int, Field(ge=2, le=64)] | None = Field(
        default=None, description="Draw so many candidates an image, and keep the one that the discriminator rates highest."
    )
    save_as: Name | None = Field(default=None, description="Register the images as a data set of this name, in place of sending them.")
    include_real: bool = Field(default=False, description="Put the images of the set before the generated ones.")

    @model_validator(mode="after")
    def _says_how_many_once(self) -> Self:
        if self.num_images is not None and self.images_per_class is not None:
            raise ValueError("num_images and images_per_class both say how many: give one of them, or none")
        return self
