"""What the application tells about one request, at its end."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

from lipsformer.inference.predictor import Prediction

__all__ = ["OTHER", "Classified", "RequestRecord", "Stage"]

OTHER = "other"  # the route of every path that is none of ours


@dataclasses.dataclass(kw_only=True, slots=True)
class Stage:
    """A part of the work on a request, from `start` to `end` on the clock of `time.perf_counter`."""

    name: Literal["read", "decode", "queue", "infer"]
    start: float
    end: float


@dataclasses.dataclass(kw_only=True, slots=True)
class Classified:
    """The answer to one image of `bytes` encoded bytes: its best classes by falling score."""

    bytes: int
    predictions: Sequence[Prediction]


@dataclasses.dataclass(kw_only=True, slots=True)
class RequestRecord:
    """One request. Times are those of `time.perf_counter`.

    Args:
        request_id: the one that the answer carries.
        route: one of the application's paths, or "other".
        client: the client's address; it goes into the access log and nowhere else.
        traceparent: the W3C header as it came.
        bytes: of the body, as far as it was read.
        status: of the answer.
        reason: of the refusal, if the whole request was refused.
        images: how many the request carried.
        batches: sizes of the batches in which they were computed.
        stages: several of one name where there are several images; the total is not one of them.
        sha256: of the file that the runtime ran, and its precision.
        predictions: one for each image that was answered; needed only where `Observer.keeps_predictions`.
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
    stages: list[Stage] = dataclasses.field(default_factory=list)
    sha256: str | None = None
    precision: str | None = None
    predictions: list[Classified] = dataclasses.field(default_factory=list)
    end: float = 0
