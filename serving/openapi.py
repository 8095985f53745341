"""The OpenAPI document of the service, exact enough to generate and test clients from."""

from __future__ import annotations

from typing import Any

from lipsformer.images.open import ImageLimits
from lipsformer.serving.http.open_inference.openapi import OF_A_TENSOR, protocol_paths
from lipsformer.serving.http.openapi_schema import REQUEST_ID, TEXT, Schema, answer, closed, refusals
from lipsformer.serving.http.problems import REASONS

__all__ = ["describe_api"]

OF_AN_IMAGE = ("empty", "too_many_bytes", "too_many_pixels", "too_much_memory", "not_an_image", "damaged", "too_slow",
               "too_complex", "internal_error")  # fmt: skip
IN_A_BATCH = [*OF_AN_IMAGE, "overloaded", "stopping", "deadline_exceeded"]
OF_A_FORM = ("missing_field", "malformed_form", "bad_top_k", "slow_upload", "too_many_images", "wrong_content_type",
             "wrong_content_encoding", "not_a_file", "overloaded", "stopping", "deadline_exceeded")  # fmt: skip

RAW_TYPES = ("image/jpeg", "image/png", "image/webp", "image/gif", "image/bmp", "image/tiff", "image/avif",
             "image/heic", "image/heif", "image/jxl", "application/octet-stream")  # fmt: skip
TOP_K = {"type": "integer", "minimum": 1, "maximum": 999_999_999, "default": 5}
EXPLAIN = {
    "name": "explain",
    "in": "query",
    "description": "1 adds a heat map of the best class. Refused if `heat_maps` of `/info` is null.",
    "schema": {"type": "integer", "enum": [0, 1], "default": 0},
}
FILE = {"type": "string", "contentMediaType": "application/octet-stream"}
ONE_FILE = {**FILE, "minLength": 1}


def describe_api(*, version: str, keys: bool, limits: ImageLimits, max_images: int, model_name: str) -> dict[str, Any]:
    """The OpenAPI 3.1 document of a server.

    Args:
        version: of the service.
        keys: whether a request needs an API key.
        limits: the largest image.
        max_images: images in one request to /classify_batch, and in an inference request.
        model_name: in the Open Inference Protocol.
    """
    description = (
        f"Classifies images of at most {limits.max_bytes} bytes and {limits.max_pixels} pixels. Every refusal is "
        "`application/problem+json` with a stable `reason`, or below `/v2` in the Open Inference Protocol's form. "
        "Send the image itself: URLs are never fetched."
    )
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "LipsFormer image classification",
            "version": version,
            "description": description,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": {
            "/classify": {"post": _classify(keys)},
            "/classify_batch": {"post": _classify_batch(keys, max_images)},
            "/info": {"get": _get("info", "Classes, model, runtime and limits", "application/json", INFO, keys)},
            "/openapi.json": {"get": _get("describe", "This document", "application/json", {"type": "object"}, keys)},
            "/metrics": {"get": _get("metrics", "Prometheus metrics", "text/plain", TEXT, keys)},
            "/": {"get": _get("page", "A web page to try it", "text/html", TEXT, keys)},
            **{path: {"get": _probe(*probe)} for path, probe in PROBES.items()},
            **protocol_paths(
                model_name,
                max_images,
                refused=(*OF_A_TENSOR, *OF_AN_IMAGE, "overloaded", "stopping", "deadline_exceeded"),
                keys=keys,
            ),
        },
        "components": {"schemas": SCHEMAS},
    }
    if keys:
        document["components"]["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer", "description": "`Authorization: Bearer KEY`"},
            "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            "basic": {"type": "http", "scheme": "basic", "description": "The key as the password of any user."},
        }
        document["security"] = [{"bearer": []}, {"header": []}, {"basic": []}]
    return document


def _classify(keys: bool) -> Schema:
    form = {"type": "object", "required": ["image"], "properties": {"image": ONE_FILE, "top_k": TOP_K}}
    return {
        "operationId": "classify",
        "summary": "Classify one image",
        "parameters": [_top_k_in_query(), EXPLAIN],
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {"schema": form},
                **{media_type: {"schema": ONE_FILE} for media_type in RAW_TYPES},
            },
        },
        "responses": {
            "200": answer("The top classes, highest score first", _ref("Classification")),
            **_refusals("several_images", "bad_explain", "no_heat_maps", *OF_AN_IMAGE, *OF_A_FORM, keys=keys),
        },
    }


def _classify_batch(keys: bool, max_images: int) -> Schema:
    files = {"type": "array", "items": FILE, "minItems": 1, "maxItems": max_images}
    form = {"type": "object", "required": ["images"], "properties": {"images": files, "top_k": TOP_K}}
    return {
        "operationId": "classifyBatch",
        "summary": f"Classify up to {max_images} images",
        "description": "Results are in the order of the files. A refused image does not affect the others.",
        "parameters": [_top_k_in_query()],
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form}}},
        "responses": {
            "200": answer("A result or a problem for each image", _ref("BatchClassification")),
            **_refusals("too_many_bytes", "internal_error", *OF_A_FORM, keys=keys),
        },
    }


def _get(name: str, summary: str, media_type: str, schema: Schema, keys: bool) -> Schema:
    responses = {"200": answer(summary, schema, media_type), **_refusals("internal_error", keys=keys)}
    return {"operationId": name, "summary": summary, "responses": responses}


def _probe(name: str, summary: str, *unready: str) -> Schema:
    """A health check, which BentoML answers in plain text and without a key."""
    content = {"text/plain": {"schema": TEXT}}
    statuses = {"200": "Yes", **dict.fromkeys(unready, "Not now")}
    responses = {status: {"description": words, "content": content} for status, words in statuses.items()}
    return {"operationId": name, "summary": summary, "security": [], "responses": responses}


def _top_k_in_query() -> Schema:
    description = "Number of classes to return; it takes precedence over the form field."
    return {"name": "top_k", "in": "query", "description": description, "schema": TOP_K}


def _refusals(*reasons: str, keys: bool) -> Schema:
    """Responses by status, as problem details with their `reasons`."""

    def schema_of(status: int, names: list[str]) -> Schema:
        return closed(type={"type": "string"}, **_problem_fields([status], names))

    return refusals(*reasons, keys=keys, media_type="application/problem+json", schema_of=schema_of)


def _problem_fields(statuses: list[int], reasons: list[str]) -> dict[str, Schema]:
    return {
        "title": {"type": "string"},
        "status": {"enum": statuses},
        "detail": {"type": "string", "description": "What is wrong and how to fix it, for people."},
        "reason": {"enum": reasons},
    }


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _timing(*stages: str, optional: tuple[str, ...] = ()) -> Schema:
    time: Schema = {"type": "number", "minimum": 0}
    return _with_optional(closed(**dict.fromkeys(stages, time)), dict.fromkeys(optional, time))


def _with_optional(schema: Schema, properties: Schema) -> Schema:
    """A closed object that may have these properties too."""
    return {**schema, "properties": {**schema["properties"], **properties}}


PREDICTIONS = {"type": "array", "minItems": 1, "items": _ref("Prediction")}
NAME = {"type": ["string", "null"], "description": "The file name in the form."}
ACCEPTANCE = {
    "accepted": {"type": "boolean", "description": "Whether the best class is to be relied on."},
    "reason": {
        "enum": ["unfamiliar", "low_score", None],
        "description": "Why it is not accepted: the image is unlike the training images, or the best score is too low.",
    },
    "distance": {
        "type": "number", "minimum": 0,
        "description": "From the features of the training images; that of a usual image is about 1.",
    },
}  # fmt: skip
CERTIFIED_RADIUS = {
    "type": "number", "minimum": 0,
    "description": "No change of the pixels that is shorter than this changes the best class: L2, of values in 0..1 as "
    "the network sees them. There if and only if the model has a certificate.",
}  # fmt: skip
RUN_BY = {"model": {"type": "string"}, "provider": {"type": "string"}, "precision": {"type": "string"}}


def _classification(*, optional: Schema | None = None, **properties: Schema) -> Schema:
    """An image's classes and `properties`; all fields of `ACCEPTANCE` or none of them are there too."""
    schema = _with_optional(closed(predictions=PREDICTIONS, **properties), optional or {})
    return {
        **schema,
        "description": (
            "`accepted`, `reason` and `distance` are there if and only if the model was calibrated to accept answers: "
            "if `calibration.acceptance` of `/info` is not null."
        ),
        "properties": {**schema["properties"], **ACCEPTANCE, "certified_radius": CERTIFIED_RADIUS},
        "dependentRequired": {name: [other for other in ACCEPTANCE if other != name] for name in ACCEPTANCE},
    }


SCHEMAS = {
    "Prediction": closed(
        label={"type": "string"},
        index={"type": "integer", "minimum": 0},
        score={"type": "number", "minimum": 0, "maximum": 1},
    ),
    "Classification": _classification(
        **RUN_BY,
        batch={"type": "integer", "minimum": 1, "description": "Number of images in the batch."},
        timing_ms=_timing("read", "decode", "queue", "infer", "total", optional=("explain",)),
        request_id=REQUEST_ID,
        optional={"explanation": _ref("Explanation")},
    ),
    "Explanation": closed(
        index={"type": "integer", "minimum": 0, "description": "The class that it explains, the best."},
        logit={"type": "number"},
        bias={"type": "number", "description": "The part of the logit that no pixel decides."},
        sum={"type": "number", "description": "Of the map: logit - bias in stage 4, about that in others."},
        completeness={"type": ["number", "null"], "description": "sum / (logit - bias)."},
        stage={"type": "integer", "minimum": 1, "maximum": 4},
        map={
            "type": "array",
            "minItems": 1,
            "description": "Contributions to the logit, row by row, of the square that the network sees.",
            "items": {"type": "array", "minItems": 1, "items": {"type": "number"}},
        },
    ),
    "BatchClassification": closed(
        results={"type": "array", "minItems": 1, "items": {"oneOf": [_ref("BatchAnswer"), _ref("BatchProblem")]}},
        **RUN_BY,
        timing_ms={"type": "object", "additionalProperties": {"type": "number", "minimum": 0}},
        request_id=REQUEST_ID,
    ),
    "BatchAnswer": _classification(name=NAME),
    "BatchProblem": closed(
        name=NAME, problem=closed(type=TEXT, **_problem_fields(sorted({REASONS[r] for r in IN_A_BATCH}), IN_A_BATCH))
    ),
}
SHARE = {"type": "number", "minimum": 0, "maximum": 1}
PORTION = {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}
THRESHOLDS = {
    **closed(
        min_score=SHARE, max_distance={"type": "number", "exclusiveMinimum": 0}, max_error=PORTION, confidence=PORTION,
        coverage=SHARE, photos={"type": "integer", "minimum": 1},
    ),
    "type": ["object", "null"],
    "description": "When an answer is accepted; null if the model was not calibrated for that.",
}  # fmt: skip
# Open for additions; a model's settings depend on the model.
INFO = {
    "type": "object",
    "required": [
        "model",
        "classes",
        "preprocessing",
        "runtime",
        "heat_maps",
        "parity",
        "metrics",
        "calibration",
        "bundle",
        "limits",
    ],
    "properties": {
        **{name: {"type": "object"} for name in ("model", "preprocessing", "parity", "metrics", "bundle")},
        "classes": {"type": "array", "minItems": 1, "items": {"type": "string"}},
        "runtime": {"type": "object", "required": ["provider", "file", "precision"]},
        "heat_maps": {"type": ["object", "null"], "required": ["stage"]},
        "calibration": closed(temperature={"type": "number", "exclusiveMinimum": 0}, acceptance=THRESHOLDS),
        "limits": {"type": "object", "required": ["max_bytes", "max_pixels", "max_batch", "max_pending"]},
    },
}
PROBES = {
    "/livez": ("live", "Whether the process is alive"),
    "/readyz": ("ready", "Whether it accepts requests", "503"),
    "/healthz": ("healthy", "As /livez"),
}
