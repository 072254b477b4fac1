"""The protocol's JSON: what is asked and answered, without the bytes that may follow it. Strict, as every body here is."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.schemas.common import Body
from app.schemas.inference import Truncation

MAX_ROWS = 256
MAX_TENSORS = 16

TensorName = Annotated[str, Field(min_length=1, max_length=63)]
Datatype = Literal["FP32", "INT64", "UINT8", "BYTES"]
Axis = Annotated[int, Field(ge=1, le=2**31)]


class InputParameters(Body):
    """How an input's values come."""

    binary_data_size: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="Bytes of this tensor behind the JSON object, in the order of the inputs; in place of `data`."
    )


class InputTensor(Body):
    """A tensor of all rows."""

    name: TensorName
    shape: Annotated[list[Axis], Field(min_length=1, max_length=8)]
    datatype: Datatype
    parameters: InputParameters = InputParameters()
    data: list[object] | None = Field(default=None, description="Flat, row by row, or nested as the shape is; BYTES are base64.")


class OutputParameters(Body):
    """How an output is answered."""

    binary_data: bool | None = Field(default=None, description="Behind the JSON object; else as the request's binary_data_output says.")


class RequestedOutput(Body):
    """An output that is wanted."""

    name: TensorName
    parameters: OutputParameters = OutputParameters()


class RequestParameters(Body):
    """What holds for the whole request."""

    binary_data_output: bool = Field(default=False, description="Every output behind the JSON object.")
    timeout: Annotated[int, Field(ge=1, le=86_400_000_000)] | None = Field(
        default=None, description="Microseconds that the answer may take, as in Triton."
    )
    truncation: Truncation | None = None


class InferRequest(Body):
    """Tensors for a model, and which ones are wanted of it."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "inputs": [{"name": "seed", "shape": [2], "datatype": "INT64", "data": [7, 8]}],
                "outputs": [{"name": "png"}],
            }
        }
    )

    id: Annotated[str, Field(max_length=1000)] | None = Field(default=None, description="Given back in the answer.")
    model_name: str | None = Field(default=None, description="As in the path; KServe's client says it here too.")
    inputs: Annotated[list[InputTensor], Field(min_length=1, max_length=MAX_TENSORS)]
    outputs: Annotated[list[RequestedOutput], Field(max_length=MAX_TENSORS)] = Field(
        default=[], description="The first one that the model gives, when left out."
    )
    parameters: RequestParameters = RequestParameters()


class TensorMetadata(BaseModel):
    """An input or output; -1 is a free axis, the first one is the rows."""

    name: str
    datatype: Datatype
    shape: list[int]


class ModelMetadata(BaseModel):
    """What a model takes and gives."""

    name: str
    versions: list[str]
    platform: Literal["pytorch_torchscript"] = "pytorch_torchscript"
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ModelReady(BaseModel):
    """Whether the model answers at once."""

    name: str
    ready: bool


class OutputTensor(BaseModel):
    """A tensor of all rows; `parameters.binary_data_size` takes the place of `data` where it was asked for."""

    name: str
    shape: list[int]
    datatype: Datatype
    parameters: InputParameters | None = None
    data: list[int | float | str] | None = None


class InferResponse(BaseModel):
    """The outputs that were wanted, in that order."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[OutputTensor]


class ServerMetadata(BaseModel):
    """Who answers."""

    name: str
    version: str
    extensions: list[str]


class ServerHealth(BaseModel):
    """The specification says `live` on both routes, KServe's client reads `ready` on one of them: both have both."""

    live: bool = True
    ready: bool


class IndexRequest(Body):
    """Which versions to list."""

    ready: bool = Field(default=False, description="Those alone that answer.")


class IndexEntry(BaseModel):
    """A version, and whether it answers."""

    name: str
    version: str
    state: Literal["READY", "LOADING", "UNAVAILABLE"]
    reason: str


class ProtocolError(BaseModel):
    """The body of every answer under /v2 that is not a success."""

    error: str
