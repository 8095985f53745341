"""Traces: a span for each request and one for each of its stages, sent to an OpenTelemetry collector.

Spans are made when a request has ended, with the times that it took, in a thread: requests never wait for a collector.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import lipsformer
from lipsformer.system.errors import InputError

from .background import Background
from .record import OTHER, RequestRecord

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

__all__ = ["Tracer", "open_tracer"]

WAITING_RECORDS = 2048
CLOSE_SECONDS = 3.0
ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")


def open_tracer(environment: Mapping[str, str]) -> Tracer | None:
    """The tracer that the variables of OpenTelemetry ask for; None if they ask for none.

    Its own libraries read the rest of these variables: endpoint, headers, sampler, service name, batch sizes.

    Raises:
        InputError: if the exporter is not installed, or one is asked for that this server has not.
    """
    exporter = environment.get("OTEL_TRACES_EXPORTER", "")
    wanted = exporter or any(environment.get(name) for name in ENDPOINTS)
    if not wanted or exporter == "none" or environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    if exporter not in ("", "otlp"):
        raise InputError(f"OTEL_TRACES_EXPORTER={exporter}: otlp or none is needed")
    protocol = next((environment[name] for name in PROTOCOLS if environment.get(name)), "http/protobuf")
    if protocol != "http/protobuf":
        raise InputError(f"OTEL_EXPORTER_OTLP_PROTOCOL={protocol}: http/protobuf is needed, usually at port 4318")
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError:
        raise InputError("traces need OpenTelemetry's exporter; pip install 'lipsformer[otlp]'") from None
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
    """Makes spans of records and gives them to a provider of its own, apart from any that BentoML has."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("lipsformer.serving", lipsformer.__version__)
        self._records = Background(self._trace_all, name="traces", capacity=WAITING_RECORDS)

    def put(self, record: RequestRecord) -> None:
        """Takes a record; returns at once."""
        self._records.put(record)

    def close(self) -> None:
        """Sends what waits, for a few seconds at most."""
        self._records.close(CLOSE_SECONDS)
        # A collector that is down would hold a shutdown up for half a minute.
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

        # One offset for all spans of a request: they fit each other even where the wall clock is set meanwhile.
        offset = time.time_ns() - time.perf_counter_ns()

        def wall(seconds: float) -> int:
            return offset + int(seconds * 1e9)

        carrier = {"traceparent": record.traceparent or ""}
        around = TraceContextTextMapPropagator().extract(carrier, Context())  # what is malformed starts a new trace
        name = record.method if record.route == OTHER else f"{record.method} {record.route}"
        span = self._tracer.start_span(
            name, around, SpanKind.SERVER, attributes=_attributes(record), start_time=wall(record.start)
        )
        if span.is_recording():
            inside = set_span_in_context(span, around)
            for stage in record.stages:
                child = self._tracer.start_span(stage.name, inside, start_time=wall(stage.start))
                child.end(wall(stage.end))
            _mark_failure(span, record)
        span.end(wall(record.end))


def _attributes(record: RequestRecord) -> dict[str, str | int]:
    """By OpenTelemetry's conventions for HTTP; neither address nor path nor anything else that a client made up."""
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


def _mark_failure(span: Span, record: RequestRecord) -> None:
    """Only the server's own failure is one: a refusal went as it should."""
    from opentelemetry.trace import Status, StatusCode

    if record.status >= 500:
        span.set_status(Status(StatusCode.ERROR, record.reason))
        span.set_attribute("error.type", record.reason or str(record.status))
