"""Bodies of the probes."""

from typing import Literal

from pydantic import BaseModel, Field


class Health(BaseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    """Whether the models are loaded."""

    status: Literal["ready", "loading"]
    device: str
    models: list[str] = Field(description="Those that answer; what is kept out by --model-memory-megabytes is loaded when it is asked for.")
    loading: list[str] = Field(description="Those that are yet to be loaded, in any order; a request for one waits, and goes first.")
