"""The record of one request, which is complete when the request ends."""

from __future__ import annotations

import dataclasses
from typing import Literal

from lipsformer.inference.classification import Classification

__all__ = ["OTHER", "Classified", "RequestRecord", "Span"]

OTHER = "other"  # the route of every unknown path


@dataclasses.dataclass(kw_only=True, slots=True)
class Span:
    """The time that one stage of the work on a request took, in seconds of `time.perf_counter`."""

    stage: Literal["read", "decode", "queue", "infer", "explain"]
    start: float
    end: float

    @property
    def seconds(self) -> float:
        """Its duration."""
        return self.end - self.start


@dataclasses.dataclass(kw_only=True, slots=True)
class Classified:
    """The answer to one image of `bytes` encoded bytes."""

    bytes: int
    classification: Classification


@dataclasses.dataclass(kw_only=True, slots=True)
class RequestRecord:
    """One request. Times are in seconds of `time.perf_counter`.

    Args:
        request_id: as in the response.
        route: one of the application's paths, or "other".
        client: the client's address, for the access log only.
        traceparent: the W3C header as received.
        bytes: of the body that were read.
        status: of the response.
        reason: of the refusal, if the whole request was refused.
        images: number of images in the request.
        batches: sizes of the batches that they were computed in.
        spans: of its stages; several of one stage where there are several images. The total is not one of them.
        sha256: of the file that the runtime ran.
        precision: of that file.
        predictions: one per image that was answered; filled only if `Observer.keeps_predictions`.
    """

    request_id: str
    method: str
    route: str
    client: str | None
    traceparent: str | None
    start: float
    bytes: int = 0
    status: int = 0
    reason: str | None = None
    images: int = 0
    batches: list[int] = dataclasses.field(default_factory=list)
    spans: list[Span] = dataclasses.field(default_factory=list)
    sha256: str | None = None
    precision: str | None = None
    predictions: list[Classified] = dataclasses.field(default_factory=list)
    end: float = 0

    def seconds_by_stage(self) -> dict[str, float]:
        """The summed durations by stage, in the order in which the stages first occurred."""
        seconds: dict[str, float] = {}
        for span in self.spans:
            seconds[span.stage] = seconds.get(span.stage, 0.0) + span.seconds
        return seconds
