"""Parsing inference requests: a JSON object, which binary tensors may follow."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import pydantic_core
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from lipsformer.inference.runtimes import LOGITS_NAME, Pixels
from lipsformer.serving.http.answering import Images
from lipsformer.serving.http.problems import Problem, shown
from lipsformer.system.validation import input_error

from .tensors import IMAGE, PIXELS, SCORES, Tensor

__all__ = ["HEADER_LENGTH", "InferenceRequest", "RequestedOutput", "parse_request"]

# Values in the JSON object: numbers of a tensor and all else. Parsing keeps the event loop from its other requests, so
# larger tensors must be sent as binary data.
MAX_VALUES = 1_000_000
LENGTH_BYTES = 4  # of the length before each element of a BYTES tensor, little-endian
HEADER_LENGTH = "Inference-Header-Content-Length"  # bytes of the JSON object, if binary tensors follow it
BINARY = f"send it as binary data, with the header {HEADER_LENGTH}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RequestedOutput:
    """An output that a request asks for: as binary data or not, and as its `classes` highest classes if that is set."""

    tensor: Tensor
    binary: bool
    classes: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class InferenceRequest(Images):
    """A parsed request; `id` is returned with the answer."""

    id: str | None
    outputs: tuple[RequestedOutput, ...]


Parameters = Annotated[dict[str, Any], BeforeValidator(lambda value: {} if value is None else value)]


class _Input(BaseModel):
    name: str
    shape: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)]
    datatype: str
    parameters: Parameters = {}
    data: list[Any] | None = None

    model_config = ConfigDict(strict=True)


class _Output(BaseModel):
    name: str
    parameters: Parameters = {}

    model_config = ConfigDict(strict=True)


class _Request(BaseModel):
    """What we know of a request; clients add what other servers know."""

    id: str | None = None
    parameters: Parameters = {}
    inputs: list[_Input]
    outputs: list[_Output] | None = None

    model_config = ConfigDict(strict=True)


def parse_request(
    body: memoryview,
    header_length: str | None,
    *,
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    max_images: int,
) -> InferenceRequest:
    """The request in a body.

    Args:
        body: of the request; the images of binary tensors are views of it.
        header_length: value of the header Inference-Header-Content-Length, if there is one: bytes of the JSON object.
        inputs: that the model has.
        outputs: that the model has; all of them are the answer to a request that names none.
        max_images: in one request.

    Raises:
        Problem: 400 if the request is malformed or does not fit the model, 413 if it is too large.
    """
    head, binary = _split(body, header_length)
    request = _parse(head)
    if len(request.inputs) != 1:
        names = " or ".join(tensor.name for tensor in inputs)
        raise _malformed(f"{len(request.inputs)} inputs; send one of them, {names}")
    (given,) = request.inputs
    data = _binary_part(given, binary) if "binary_data_size" in given.parameters else None
    if data is None and len(binary):
        raise _malformed(f"{len(binary)} bytes follow the JSON object, and no input has a binary_data_size")
    if (data is None) == (given.data is None):
        raise _malformed(f"input {shown(given.name)}: give either 'data' or 'binary_data_size' for its values")
    tensor = _fitting(given, inputs)
    if given.shape[0] > max_images:
        detail = f"{given.shape[0]} images, limit {max_images}; send them in several requests"
        raise Problem(413, "too_many_images", detail)
    images = (_pixels if tensor.name == PIXELS else _encoded)(given, data)
    return InferenceRequest(images=images, id=request.id, outputs=_wanted(request, outputs))


def _split(body: memoryview, header_length: str | None) -> tuple[memoryview, memoryview]:
    """The JSON object, and the binary data behind it."""
    if header_length is None:
        return body, body[:0]
    if not (header_length.isascii() and header_length.isdigit() and len(header_length) < 16):
        raise _malformed(f"{HEADER_LENGTH}: {shown(header_length)} is not a number of bytes")
    length = int(header_length)
    if length > len(body):
        raise _malformed(f"{HEADER_LENGTH} is {length}, but the body has {len(body)} bytes")
    return body[:length], body[length:]


def _parse(head: memoryview) -> _Request:
    content = bytes(head)
    if sum(map(content.count, (b",", b"[", b"{"))) > MAX_VALUES:
        raise Problem(413, "too_many_values", f"the JSON object has over {MAX_VALUES} values; {BINARY}")
    try:
        return _Request.model_validate(pydantic_core.from_json(content, allow_inf_nan=False))
    except ValidationError as error:
        raise _malformed(f"{input_error(error, 'request', show=lambda value: shown(repr(value), most=60))}") from None
    except ValueError as error:
        raise _malformed(f"the request is not JSON ({error}); if tensors follow it, {BINARY}") from None


def _binary_part(given: _Input, binary: memoryview) -> memoryview:
    size = given.parameters["binary_data_size"]
    if type(size) is not int or size != len(binary):
        raise _malformed(
            f"input {shown(given.name)}: binary_data_size is {shown(repr(size), most=20)}, but {len(binary)} bytes "
            f"follow the JSON object; {HEADER_LENGTH} says where they begin"
        )
    return binary


def _fitting(given: _Input, inputs: Sequence[Tensor]) -> Tensor:
    """The model's input that `given` is for."""
    tensor = next((tensor for tensor in inputs if tensor.name == given.name), None)
    if tensor is None:
        names = ", ".join(tensor.name for tensor in inputs)
        raise _malformed(f"the model has no input {shown(given.name)}; it has {names}")
    if given.datatype != tensor.datatype:
        raise _malformed(f"input {tensor.name}: datatype {shown(given.datatype)}, needed {tensor.datatype}")
    if "shared_memory_region" in given.parameters:
        raise _malformed(f"input {tensor.name}: this server has no shared memory; send the values")
    rest = list(tensor.shape[1:])
    if given.shape[1:] != rest and not (tensor.name == IMAGE and given.shape[1:] == [1]):
        raise _malformed(f"input {tensor.name}: shape {shown(str(given.shape), most=60)}, needed {['N', *rest]}")
    return tensor


def _pixels(given: _Input, data: memoryview | None) -> tuple[Pixels, ...]:
    count = math.prod(given.shape)
    content = _numbers(given) if data is None else data
    if len(content) != count:
        raise _malformed(f"input {PIXELS}: {len(content)} values for the shape {given.shape}, which has {count}")
    return tuple(np.frombuffer(content, np.uint8).reshape(given.shape))


def _numbers(given: _Input) -> bytes:
    """The values of a uint8 tensor in JSON, which is flat or nested as its shape is."""
    values = _flat(given)
    if not set(map(type, values)) <= {int}:
        raise _malformed(f"input {PIXELS}: a value is not a whole number")
    try:
        return bytes(values)
    except ValueError:
        raise _malformed(f"input {PIXELS}: a value is not from 0 to 255") from None


def _encoded(given: _Input, data: memoryview | None) -> tuple[memoryview, ...]:
    images = _base64(given) if data is None else _elements(data)
    if len(images) != given.shape[0]:
        raise _malformed(f"input {IMAGE}: {len(images)} elements for the shape {given.shape}")
    return tuple(images)


def _base64(given: _Input) -> list[memoryview]:
    try:
        return [memoryview(base64.b64decode(element, validate=True)) for element in _flat(given)]
    except (binascii.Error, TypeError, ValueError):
        detail = f"input {IMAGE}: in JSON each image is a string of base64 without line breaks; URLs are never fetched"
        raise _malformed(detail) from None


def _elements(data: memoryview) -> list[memoryview]:
    """The elements of a binary BYTES tensor, each behind its length."""
    elements: list[memoryview] = []
    at = 0
    while at < len(data):
        start = at + LENGTH_BYTES
        at = start + int.from_bytes(data[at:start], "little")
        if start > len(data) or at > len(data):
            raise _malformed(
                f"input {IMAGE}: element {len(elements)} is cut off; each is a length of {LENGTH_BYTES} bytes, "
                "little-endian, and that many bytes"
            )
        elements.append(data[start:at])
    return elements


def _flat(given: _Input) -> list[Any]:
    values = given.data or []
    if values and isinstance(values[0], list):
        for size in given.shape[1:]:
            if not all(isinstance(row, list) and len(row) == size for row in values):
                raise _malformed(f"input {given.name}: 'data' is neither flat nor nested as its shape is")
            values = list(itertools.chain.from_iterable(values))
    return values


def _wanted(request: _Request, outputs: Sequence[Tensor]) -> tuple[RequestedOutput, ...]:
    """The outputs to give."""
    default = _flag(request.parameters, "binary_data_output", default=False)
    if not request.outputs:
        return tuple(RequestedOutput(tensor=tensor, binary=default) for tensor in outputs)
    known = {tensor.name: tensor for tensor in outputs}
    wanted: dict[str, RequestedOutput] = {}
    for output in request.outputs:
        if output.name not in known:
            raise _malformed(f"the model has no output {shown(output.name)}; it has {', '.join(known)}")
        if output.name in wanted:
            raise _malformed(f"output {output.name}: asked for twice")
        if "shared_memory_region" in output.parameters:
            raise _malformed(f"output {output.name}: this server has no shared memory; omit that parameter")
        wanted[output.name] = RequestedOutput(
            tensor=known[output.name],
            binary=_flag(output.parameters, "binary_data", default=default),
            classes=_classes(output),
        )
    return tuple(wanted.values())


def _classes(output: _Output) -> int | None:
    count = output.parameters.get("classification")
    if count is None:
        return None
    if type(count) is not int or count < 1:
        given = shown(repr(count), most=20)
        raise _malformed(f"output {output.name}: classification is {given}; a whole number of at least 1 is needed")
    if output.name not in (LOGITS_NAME, SCORES):
        raise _malformed(f"output {output.name}: classification is of {LOGITS_NAME} or {SCORES}")
    return count


def _flag(parameters: dict[str, Any], name: str, *, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise _malformed(f"parameter {name} is {shown(repr(value), most=20)}; use true or false")
    return value


def _malformed(detail: str) -> Problem:
    return Problem(400, "malformed_request", detail)
