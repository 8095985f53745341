"""Traces: one span per request and one per stage of it, sent to an OpenTelemetry collector.

A background thread creates the spans after a request has ended, from recorded times. No request waits for a collector.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import lipsformer
from lipsformer.system.errors import InputError
from lipsformer.system.extras import require

from .background import Background
from .record import OTHER, RequestRecord

if TYPE_CHECKING:
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider

__all__ = ["Tracer", "open_tracer"]

WAITING_RECORDS = 2048
CLOSE_SECONDS = 3.0
ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")


def open_tracer(environment: Mapping[str, str]) -> Tracer | None:
    """The tracer that OpenTelemetry's variables configure, or None.

    Its libraries read the rest of these variables: endpoint, headers, sampler, service name, batch sizes.

    Raises:
        InputError: if the exporter is not installed or not supported.
    """
    exporter = environment.get("OTEL_TRACES_EXPORTER", "")
    wanted = exporter or any(environment.get(name) for name in ENDPOINTS)
    if not wanted or exporter == "none" or environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    if exporter not in ("", "otlp"):
        raise InputError(f"OTEL_TRACES_EXPORTER={exporter}: use otlp or none")
    protocol = next((environment[name] for name in PROTOCOLS if environment.get(name)), "http/protobuf")
    if protocol != "http/protobuf":
        raise InputError(f"OTEL_EXPORTER_OTLP_PROTOCOL={protocol}: use http/protobuf, usually on port 4318")
    require("otlp", what="traces")
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource.create({"service.version": lipsformer.__version__})
    if str(resource.attributes.get("service.name", "")).startswith("unknown_service"):
        resource = resource.merge(Resource({"service.name": "lipsformer"}))
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracer(provider)


class Tracer:
    """Turns records into spans, with a provider separate from BentoML's."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("lipsformer.serving", lipsformer.__version__)
        self._records = Background(self._trace_all, name="traces", capacity=WAITING_RECORDS)

    def put(self, record: RequestRecord) -> None:
        """Queues a record; returns at once."""
        self._records.put(record)

    def close(self) -> None:
        """Sends the queued records, for a few seconds at most."""
        self._records.close(CLOSE_SECONDS)
        # A collector that is down would delay the shutdown by half a minute.
        closing = threading.Thread(target=self._provider.shutdown, name="close traces", daemon=True)
        closing.start()
        closing.join(CLOSE_SECONDS)

    def _trace_all(self, records: Sequence[RequestRecord]) -> None:
        for record in records:
            self._trace(record)

    def _trace(self, record: RequestRecord) -> None:
        from opentelemetry.context import Context
        from opentelemetry.trace import SpanKind, set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        # One offset for all spans of a request, so that they stay consistent if the wall clock is adjusted.
        offset = time.time_ns() - time.perf_counter_ns()

        def wall(seconds: float) -> int:
            return offset + int(seconds * 1e9)

        carrier = {"traceparent": record.traceparent or ""}
        around = TraceContextTextMapPropagator().extract(carrier, Context())  # a malformed one starts a new trace
        name = record.method if record.route == OTHER else f"{record.method} {record.route}"
        span = self._tracer.start_span(
            name, around, SpanKind.SERVER, attributes=_attributes(record), start_time=wall(record.start)
        )
        if span.is_recording():
            inside = set_span_in_context(span, around)
            for part in record.spans:
                child = self._tracer.start_span(part.stage, inside, start_time=wall(part.start))
                child.end(wall(part.end))
            _mark_failure(span, record)
        span.end(wall(record.end))


def _attributes(record: RequestRecord) -> dict[str, str | int]:
    """Attributes by OpenTelemetry's HTTP conventions, without address, path or anything else that a client chooses."""
    attributes: dict[str, str | int | None] = {
        "http.request.method": record.method,
        "http.route": None if record.route == OTHER else record.route,
        "http.response.status_code": record.status,
        "http.request.body.size": record.bytes,
        "lipsformer.request_id": record.request_id,
        "lipsformer.reason": record.reason,
        "lipsformer.images": record.images,
        "lipsformer.batch": max(record.batches, default=0),
        "lipsformer.precision": record.precision,
        "lipsformer.sha256": record.sha256,
    }
    return {name: value for name, value in attributes.items() if value is not None}


def _mark_failure(span: trace.Span, record: RequestRecord) -> None:
    """Marks a failure of the server; a refusal is not one."""
    from opentelemetry.trace import Status, StatusCode

    if record.status >= 500:
        span.set_status(Status(StatusCode.ERROR, record.reason))
        span.set_attribute("error.type", record.reason or str(record.status))
