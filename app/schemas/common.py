"""What the bodies of several rooms share. Strict: `true` is no integer, unknown fields are refused."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

MAX_JSON_BYTES = 2**20
MAX_LATENT_BYTES = 16 * 2**20  # where a body may hold latents
MAX_UPLOAD_BYTES = 64 * 2**20
MAX_ARCHIVE_BYTES = 2 * 2**30  # of pictures, which goes to the disk as it comes
ModelName = Annotated[str, Field(min_length=1, max_length=63, description="A model of GET /models.")]
Version = Annotated[
    Annotated[int, Field(ge=1)] | Annotated[str, Field(min_length=1, max_length=63)],
    Field(description="A version's number or an alias; `production`, else the newest, when left out."),
]


class Body(BaseModel):
    """A request's body."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
