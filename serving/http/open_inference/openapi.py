"""The Open Inference Protocol in the OpenAPI document."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lipsformer.serving.http.openapi_schema import TEXT, Schema, answer, closed, refusals
from lipsformer.serving.http.problems import PROTOCOL

from .handlers import HEALTH_PATHS, MODEL_PATHS
from .requests import HEADER_LENGTH

__all__ = ["OF_A_TENSOR", "protocol_paths"]

# Reasons of a refused inference request that are not its images'.
OF_A_TENSOR = ("malformed_request", "unknown_model", "slow_upload", "too_many_images", "too_many_values",
               "wrong_content_encoding")  # fmt: skip

POSITIVE = {"type": "integer", "minimum": 1}
SHAPE = {"type": "array", "items": {"type": "integer"}}
TENSORS = {"type": "array", "items": closed(name=TEXT, datatype=TEXT, shape=SHAPE)}
PARAMETERS = {"type": ["object", "null"]}


def protocol_paths(model: str, max_images: int, *, refused: Sequence[str], keys: bool) -> dict[str, Schema]:
    """The paths of the protocol.

    Args:
        model: its name.
        max_images: in one inference request.
        refused: the reasons for which such a request is refused.
        keys: whether a request needs an API key.
    """
    server = closed(name=TEXT, version=TEXT, extensions={"type": "array", "items": TEXT})
    paths: dict[str, Schema] = {PROTOCOL: {"get": _get("server", "The server and its extensions", server, keys)}}
    for path, schema in zip(HEALTH_PATHS, (closed(live={"const": True}), closed(ready={"const": True})), strict=True):
        name = path.rpartition("/")[2]
        paths[path] = {"get": {**_get(name, f"Whether the server is {name}", schema, keys=False), "security": []}}
        if name == "ready":
            paths[path]["get"]["responses"]["503"] = answer("Not now", closed(ready={"const": False}))
    for path, suffix in zip(MODEL_PATHS, ("", "Version"), strict=True):
        parameters = [_in_path("model", {"enum": [model]}), *([_in_path("version", TEXT)] if suffix else [])]
        described = closed(
            name=TEXT, versions={"type": "array", "items": TEXT}, platform=TEXT, inputs=TENSORS, outputs=TENSORS
        )
        readiness = _get(f"modelReady{suffix}", "Whether the model is ready", _ready(True), keys, "unknown_model")
        readiness["responses"]["503"] = answer("Not now", _ready(False))
        paths[path] = {
            "parameters": parameters,
            "get": _get(f"model{suffix}", "The inputs and outputs of the model", described, keys, "unknown_model"),
        }
        paths[f"{path}/ready"] = {"parameters": parameters, "get": readiness}
        paths[f"{path}/infer"] = {"parameters": parameters, "post": _infer(suffix, max_images, refused, keys)}
    return paths


def _infer(suffix: str, max_images: int, refused: Sequence[str], keys: bool) -> Schema:
    outputs = {
        "type": "object",
        "required": ["model_name", "model_version", "outputs"],
        "properties": {"model_name": TEXT, "model_version": TEXT, "id": TEXT, "outputs": {"type": "array"}},
    }
    return {
        "operationId": f"infer{suffix}",
        "summary": f"Scores of up to {max_images} images or tensors (Open Inference Protocol)",
        "parameters": [
            {
                "name": HEADER_LENGTH, "in": "header", "schema": {"type": "integer", "minimum": 0},
                "description": "Bytes of the JSON object, if binary tensors follow it.",
            }
        ],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": _request()}, "application/octet-stream": {"schema": {}}},
        },
        "responses": {
            "200": {
                **answer("The requested outputs", outputs),
                "content": {"application/json": {"schema": outputs}, "application/octet-stream": {"schema": {}}},
            },
            **_refusals(*refused, keys=keys),
        },
    }  # fmt: skip


def _request() -> Schema:
    tensor = {
        "type": "object",
        "required": ["name", "shape", "datatype"],
        "properties": {
            "name": {"enum": ["pixels", "image"]},
            "shape": {"type": "array", "minItems": 1, "items": POSITIVE},
            "datatype": {"enum": ["UINT8", "BYTES"]},
            "parameters": PARAMETERS,
            "data": {
                "type": ["array", "null"],
                "description": "Flat or nested numbers of pixels; of an image, a string of base64.",
            },
        },
    }
    output = {
        "type": "object",
        "required": ["name"],
        "properties": {
            "name": {"enum": ["logits", "scores", "labels", "features", "accepted", "distance"]},
            "parameters": {
                **PARAMETERS, "properties": {"binary_data": {"type": "boolean"}, "classification": POSITIVE},
            },
        },
    }  # fmt: skip
    return {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": ["string", "null"]},
            "parameters": {**PARAMETERS, "properties": {"binary_data_output": {"type": "boolean"}}},
            "inputs": {"type": "array", "minItems": 1, "maxItems": 1, "items": tensor},
            "outputs": {"type": ["array", "null"], "items": output},
        },
    }


def _get(name: str, summary: str, schema: Schema, keys: bool, *reasons: str) -> Schema:
    return {
        "operationId": f"inference{name[0].upper()}{name[1:]}",
        "summary": f"{summary} (Open Inference Protocol)",
        "responses": {"200": answer(summary, schema), **_refusals("internal_error", *reasons, keys=keys)},
    }


def _ready(value: bool) -> Schema:
    return closed(name=TEXT, ready={"const": value})


def _refusals(*reasons: str, keys: bool) -> dict[str, Schema]:
    schema = closed(error=TEXT)
    return refusals(*reasons, keys=keys, media_type="application/json", schema_of=lambda _status, _names: schema)


def _in_path(name: str, schema: dict[str, Any]) -> Schema:
    return {"name": name, "in": "path", "required": True, "schema": schema}
