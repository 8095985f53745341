"""Encoding the answers to an inference request: a JSON object, which binary tensors may follow."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from starlette.responses import Response

from lipsformer.serving.pipeline.inference import Answered

from .requests import HEADER_LENGTH, InferenceRequest, RequestedOutput
from .tensors import Datatype, Values, output_values

__all__ = ["infer_response"]


def infer_response(
    request: InferenceRequest, answers: list[Answered], classes: Sequence[str], *, name: str, version: str
) -> Response:
    """The response that has the outputs that `request` asks for.

    Args:
        request: which outputs, and in which form.
        answers: one for each image.
        classes: the class names.
        name: of the model.
        version: of the model.
    """
    described, parts = [], []
    for output in request.outputs:
        content, part = _describe(output, answers, classes)
        described.append(content)
        parts.append(part)
    head = {
        **({} if request.id is None else {"id": request.id}),
        "model_name": name,
        "model_version": version,
        "outputs": described,
    }
    encoded = json.dumps(head, separators=(",", ":")).encode()
    if not any(output.binary for output in request.outputs):
        return Response(encoded, media_type="application/json")
    headers = {HEADER_LENGTH: str(len(encoded))}
    return Response(b"".join([encoded, *parts]), media_type="application/octet-stream", headers=headers)


def _describe(output: RequestedOutput, answers: list[Answered], classes: Sequence[str]) -> tuple[dict[str, Any], bytes]:
    """An output for the JSON object, and its binary data; without that, the values are in the first."""
    datatype: Datatype = output.tensor.datatype
    values = output_values(output.tensor.name, answers)
    shape = [len(answers), *output.tensor.shape[1:]]
    if output.classes is not None:
        rows = [_top(row, classes, output.classes) for row in np.asarray(values)]
        datatype, shape, values = "BYTES", [len(rows), len(rows[0])], [text for row in rows for text in row]
    content: dict[str, Any] = {"name": output.tensor.name, "datatype": datatype, "shape": shape}
    if output.binary:
        part = _binary(values)
        return {**content, "parameters": {"binary_data_size": len(part)}}, part
    return {**content, "data": values if isinstance(values, list) else values.ravel().tolist()}, b""


def _top(values: np.ndarray[Any, Any], classes: Sequence[str], count: int) -> list[str]:
    """The classes with the highest of `values` (K,), as VALUE:INDEX:LABEL (Triton's classification extension)."""
    order = np.argsort(-values, kind="stable")[:count]
    return [f"{values[index]:f}:{index}:{classes[index]}" for index in order]


def _binary(values: Values) -> bytes:
    """Little-endian values; each text behind its length."""
    if not isinstance(values, list):
        return values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()
    encoded = [text.encode() for text in values]
    return b"".join(len(text).to_bytes(4, "little") + text for text in encoded)
