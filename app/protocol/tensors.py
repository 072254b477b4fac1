"""Bodies of the protocol become tensors, and tensors bodies: one JSON object, and behind it the bytes of those tensors that come so.

That is the binary tensor data extension: little-endian, row by row, without padding; each element of BYTES has its length before it,
in 4 bytes. In JSON, BYTES are base64, since JSON has no other way to hold a picture.
"""

import base64
import binascii
import json
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from pydantic_core import from_json

from app import errors
from app.errors import BadRequest, FieldError, Invalid, PayloadTooLarge, show
from app.protocol.documents import MAX_ROWS, Datatype, InferRequest, InputTensor
from app.schemas.common import MAX_LATENT_BYTES

HEADER_LENGTH = "Inference-Header-Content-Length"
MAX_JSON_VALUES = 2**22  # of an output: what is longer takes minutes to read, and a gigabyte
_VALUES_A_CALL = 2**14  # of the JSON encoder, which lets no other thread run meanwhile
_DTYPES: Mapping[Datatype, np.dtype[np.generic]] = {
    "FP32": np.dtype("<f4"),
    "INT64": np.dtype("<i8"),
    "UINT8": np.dtype("u1"),
    "BYTES": np.dtype(object),
}


@dataclass(frozen=True)
class Tensor:
    """Values of the datatype, bytes objects where it is BYTES; and where in the request it stands."""

    name: str
    datatype: Datatype
    values: NDArray[np.generic]
    pointer: str = ""

    def wrong(self, message: str) -> Invalid:
        return Invalid(f"{self.name}: {message}", errors=(FieldError(pointer=self.pointer, message=message),))


@dataclass(frozen=True)
class Request:
    """A request, and its tensors by name in their order."""

    document: InferRequest
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True)
class Answer:
    """A body, and the headers that it needs."""

    content: bytes
    media_type: str
    headers: dict[str, str]


# --- reading ------------------------------------------------------------------------------------------------------------------


def read(content: bytes, header_length: str | None) -> Request:
    """A request out of its body.

    Args:
        header_length: the header that says how long the JSON object is, where there is more than that.

    Raises:
        BadRequest: no JSON, or a header that does not fit the body.
        PayloadTooLarge: too much JSON.
        Invalid: a field or tensor that is not allowed.
    """
    length = _json_length(content, header_length)
    document = _document(content[:length])
    tensors: dict[str, Tensor] = {}
    rest = memoryview(content)[length:]
    for index, given in enumerate(document.inputs):
        size = given.parameters.binary_data_size or 0
        tensor = _tensor(given, f"/inputs/{index}", rest[:size])
        rest = rest[size:]
        if given.name in tensors:
            raise tensor.wrong("this input stands here twice; give it once")
        tensors[given.name] = tensor
    if rest:
        raise Invalid(f"the body has {len(rest)} bytes more than its inputs' binary_data_size say")
    return Request(document, tensors)


def _json_length(content: bytes, header_length: str | None) -> int:
    length = len(content)
    if header_length is not None:
        if not (header_length.isascii() and header_length.isdecimal() and len(header_length) < 16 and int(header_length) <= length):
            given = f"{HEADER_LENGTH} is {show(header_length)}"
            raise BadRequest(f"{given}, and the body has {length} bytes; the length of its JSON object is wanted")
        length = int(header_length)
    if length > MAX_LATENT_BYTES:
        raise PayloadTooLarge(f"the JSON object has {length} bytes; {MAX_LATENT_BYTES} are allowed: send the tensors as binary data")
    return length


def _document(content: bytes) -> InferRequest:
    try:
        given = from_json(content, allow_inf_nan=False)
    except ValueError as error:
        raise BadRequest(f"the body is no JSON: {error}; {HEADER_LENGTH} says where it ends, if bytes follow") from error
    try:
        return InferRequest.model_validate(given)
    except ValidationError as error:
        raise errors.invalid(error.errors(include_url=False), given, errors.fields_of(InferRequest)) from error


def _tensor(given: InputTensor, pointer: str, content: memoryview) -> Tensor:
    name, size = given.name, given.parameters.binary_data_size
    empty = Tensor(name, given.datatype, np.empty(0), pointer)
    if (given.data is None) == (size is None):
        raise empty.wrong("values come as `data`, or behind the JSON object with the parameter binary_data_size; give one of the two")
    if size is not None and size != len(content):
        raise empty.wrong(f"its binary_data_size is {size}, and {len(content)} bytes are left of the body")
    read_values = _from_binary if given.data is None else _from_json
    try:
        _check_size(given)
        values = read_values(given, content).reshape(given.shape)
    except ValueError as error:
        raise empty.wrong(str(error)) from error
    return Tensor(name, given.datatype, values, pointer)


def _check_size(given: InputTensor) -> None:
    if given.shape[0] > MAX_ROWS:
        raise ValueError(f"the first axis is the rows, and its shape {given.shape} has {given.shape[0]}; 1 to {MAX_ROWS} are allowed")
    if given.datatype == "BYTES" and len(given.shape) > 1:
        raise ValueError(f"BYTES have one element a row, so one axis, and this shape is {given.shape}")


def _from_binary(given: InputTensor, content: memoryview) -> NDArray[np.generic]:
    """Flat; raises ValueError where the bytes are not those of the shape."""
    count, dtype = math.prod(given.shape), _DTYPES[given.datatype]
    if given.datatype == "BYTES":
        return _objects(list(islice(_elements(content), count + 1)), count)
    if count * dtype.itemsize != len(content):
        raise ValueError(f"{given.datatype} of shape {given.shape} are {count * dtype.itemsize} bytes, and {len(content)} are given")
    return np.frombuffer(content, dtype)


def _elements(content: memoryview) -> Iterator[bytes]:
    while content:
        start = struct.unpack_from("<I", content)[0] + 4 if len(content) >= 4 else 0
        if not 4 <= start <= len(content):
            raise ValueError("each element of BYTES has its length before it, in 4 bytes, and one of these is longer than what follows")
        yield bytes(content[4:start])
        content = content[start:]


def _from_json(given: InputTensor, _: memoryview) -> NDArray[np.generic]:
    """Flat; raises ValueError where the values are not those of the shape and datatype."""
    values, datatype = _flat(given.data or [], given.shape), given.datatype
    kinds: Mapping[Datatype, set[type]] = {"BYTES": {str}, "FP32": {int, float}}
    allowed = kinds.get(datatype, {int})
    count = math.prod(given.shape)
    if not set(map(type, values)) <= allowed:  # type itself: a bool is no int here
        raise ValueError(f"{datatype} are {' or '.join(sorted(kind.__name__ for kind in allowed))} values, flat or as the shape is nested")
    if datatype == "BYTES":
        return _objects([_decoded(value) for value in values], count)
    if len(values) != count:
        raise ValueError(f"a shape of {given.shape} has {count} values, and {len(values)} are given")
    try:
        with np.errstate(over="ignore"):  # what becomes infinite is refused with all that is too large
            return np.array(values, dtype=_DTYPES[datatype])
    except OverflowError as error:
        raise ValueError(f"a value is out of the range of {datatype}") from error


def _flat(values: list[object], shape: Sequence[int]) -> list[object]:
    for size in shape[1:]:
        if not values or not all(isinstance(value, list) and len(value) == size for value in values):
            break
        values = list(chain.from_iterable(value for value in values if isinstance(value, list)))
    return values


def _decoded(value: object) -> bytes:
    try:
        return base64.b64decode(str(value), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"in JSON, BYTES are base64, and {show(value)} is none; send them as binary data, or encode them") from error


def _objects(elements: list[bytes], count: int) -> NDArray[np.generic]:
    if len(elements) != count:
        raise ValueError(f"the shape has {count} elements, and {len(elements)} are given")
    values = np.empty(count, dtype=object)
    values[:] = elements
    return values


# --- writing ------------------------------------------------------------------------------------------------------------------


def check_length(name: str, num_values: int) -> None:
    """Raises Invalid where an output has too many values for JSON; `write` does not ask again, after all the work."""
    if num_values > MAX_JSON_VALUES:
        raise Invalid(f"{name}: {num_values} values are too many for JSON, {MAX_JSON_VALUES} are allowed; ask for binary_data")


def write(head: Mapping[str, str], outputs: Sequence[tuple[Tensor, bool]]) -> Answer:
    """An answer.

    Args:
        head: what is told beside the outputs.
        outputs: each one, and whether it goes behind the JSON object.
    """
    parts = [_binary(tensor) if binary else None for tensor, binary in outputs]
    entries = [_entry(tensor, part) for (tensor, _), part in zip(outputs, parts, strict=True)]
    text = f'{json.dumps(dict(head))[:-1]}, "outputs": [{", ".join(entries)}]}}'.encode("ascii")
    behind = [part for part in parts if part is not None]
    if not behind:
        return Answer(text, "application/json", {})
    return Answer(b"".join([text, *behind]), "application/octet-stream", {HEADER_LENGTH: str(len(text))})


def _binary(tensor: Tensor) -> bytes:
    if tensor.datatype == "BYTES":
        elements: list[bytes] = tensor.values.tolist()
        return b"".join(struct.pack("<I", len(element)) + element for element in elements)
    return tensor.values.astype(_DTYPES[tensor.datatype], copy=False).tobytes()


def _entry(tensor: Tensor, binary: bytes | None) -> str:
    entry: dict[str, object] = {"name": tensor.name, "shape": list(tensor.values.shape), "datatype": tensor.datatype}
    if binary is not None:
        return json.dumps(entry | {"parameters": {"binary_data_size": len(binary)}})
    values, step = tensor.values.reshape(-1), 1 if tensor.datatype == "BYTES" else _VALUES_A_CALL
    data = ", ".join(json.dumps(_json_values(values[start : start + step]))[1:-1] for start in range(0, len(values), step))
    return f'{json.dumps(entry)[:-1]}, "data": [{data}]}}'


def _json_values(values: NDArray[np.generic]) -> list[object]:
    return [base64.b64encode(value).decode("ascii") if isinstance(value, bytes) else value for value in values.tolist()]
