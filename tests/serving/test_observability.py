"""Observability: metrics of all workers, log lines that cannot be forged, traces, and monitored predictions."""

from __future__ import annotations

import http.server
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from lipsformer.serving.bento.monitoring import BentoMonitor
from lipsformer.serving.observability import RequestRecord, Span, open_metrics
from lipsformer.serving.observability.background import Background
from lipsformer.serving.observability.logs import access_fields, configure_logs
from lipsformer.serving.observability.tracing import open_tracer
from lipsformer.system.errors import InputError
from tests.support.http.running import running

FORGED = "\n2026-01-01T00:00:00.000Z error forged\r\x1b[2J\x9b31m\u2028\u202e\x00\ud800"
WORKER = """
import sys
from lipsformer.serving.observability import RequestRecord, Span, open_metrics

metrics = open_metrics()
print("ready", flush=True)
for line in sys.stdin:
    exec(line)
    print("done", flush=True)
"""


def a_record(**changes: Any) -> RequestRecord:
    """A request that took 40 ms: 10 of reading, 20 of decoding, 10 of inference."""
    start = time.perf_counter() - 0.04
    spans = [
        Span(stage="read", start=start, end=start + 0.01),
        Span(stage="decode", start=start + 0.01, end=start + 0.03),
        Span(stage="infer", start=start + 0.03, end=start + 0.04),
    ]
    given = {"request_id": "r-1", "method": "POST", "route": "/classify", "client": "192.0.2.7", "traceparent": None}
    usual = {"start": start, "end": start + 0.04, "bytes": 5000, "status": 200, "images": 1, "batches": [4]}
    return RequestRecord(**{**given, **usual, "spans": spans, **changes})


class Worker:
    """A process that counts as it is told."""

    def __init__(self, folder: Path) -> None:
        environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder)}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process: subprocess.Popen[str] = subprocess.Popen([sys.executable, "-c", WORKER], env=environment, **pipes)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def __call__(self, statement: str) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(statement + "\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n"

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        self.process.send_signal(number)
        self.process.communicate(timeout=20)


def collected(folder: Path) -> dict[str, float]:
    """All samples as a scrape of any worker gives them."""
    from prometheus_client import CollectorRegistry
    from prometheus_client.multiprocess import MultiProcessCollector

    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=str(folder))
    samples = [sample for metric in registry.collect() for sample in metric.samples]
    return {
        sample.name + "".join(f" {name}={value}" for name, value in sorted(sample.labels.items())): sample.value
        for sample in samples
    }


def test_workers_metrics_add_up_and_a_killed_one_keeps_its_counts(tmp_path: Path) -> None:
    first, second = Worker(tmp_path), Worker(tmp_path)
    for worker in (first, second):
        worker("metrics.accepted.inc(3); metrics.answered.inc(2); metrics.pending.inc()")
        worker(
            "metrics.runs(model='m', provider='p', file='a.onnx', precision='fp32', sha256='a', fallback=False);"
            "metrics.batch_size.observe(4)"
        )
    second("metrics.queue_depth.set(5); metrics.reading.inc(2)")
    seen = collected(tmp_path)
    assert seen["lipsformer_accepted_total"] == 6
    assert seen["lipsformer_pending"] == 2
    assert seen["lipsformer_queue_depth"] == 5
    assert seen["lipsformer_batch_size_count"] == 2
    assert seen["lipsformer_worker_starts_total"] == 2
    model = "lipsformer_model_info fallback=false file=a.onnx model=m precision=fp32 provider=p sha256=a"
    assert seen[model] == 2

    second.end(signal.SIGKILL)
    assert collected(tmp_path)["lipsformer_pending"] == 2  # nobody has noticed yet
    third = Worker(tmp_path)
    seen = collected(tmp_path)
    assert (seen["lipsformer_pending"], seen["lipsformer_queue_depth"], seen["lipsformer_reading"]) == (1, 0, 0)
    assert seen[model] == 1
    assert (seen["lipsformer_accepted_total"], seen["lipsformer_answered_total"]) == (6, 4)
    assert seen["lipsformer_worker_starts_total"] == 3
    lost = seen["lipsformer_accepted_total"] - seen["lipsformer_answered_total"] - seen["lipsformer_pending"]
    assert lost == 1
    first.end()
    third.end()


def test_a_swap_leaves_the_old_model_at_zero(tmp_path: Path) -> None:
    worker = Worker(tmp_path)
    same = "model='m', provider='p', precision='fp32', fallback=False"
    worker(f"metrics.runs({same}, file='a.onnx', sha256='a')")
    worker(f"metrics.runs({same}, file='a.onnx', sha256='a')")
    worker(f"metrics.runs({same}, file='b.onnx', sha256='b')")
    worker.end()
    models = {key: value for key, value in collected(tmp_path).items() if "model_info" in key}
    assert sorted((("sha256=b" in key), value) for key, value in models.items()) == [(False, 0), (True, 1)]


def test_a_request_is_counted_with_its_stages_in_a_process_alone() -> None:
    from prometheus_client import REGISTRY

    def value(name: str, **labels: str) -> float:
        return REGISTRY.get_sample_value(f"lipsformer_{name}", labels) or 0

    def counts() -> list[float]:
        return [
            value("requests_total", route="/classify", status="200"),
            value("requests_total", route="/classify", status="503"),
            value("refusals_total", reason="overloaded"),
            value("stage_seconds_count", stage="decode"),
            value("stage_seconds_bucket", stage="decode", le="0.01"),
            value("stage_seconds_bucket", stage="decode", le="0.05"),
            value("stage_seconds_count", stage="total"),
        ]

    metrics = open_metrics()
    assert open_metrics() is metrics
    before = counts()
    metrics.observe(a_record())
    metrics.observe(a_record(status=503, reason="overloaded", spans=[]))  # refused early: no latency of any stage
    assert [after - earlier for after, earlier in zip(counts(), before, strict=True)] == [1, 1, 1, 1, 0, 1, 1]


def test_the_names_are_those_that_dashboards_know() -> None:
    from prometheus_client import REGISTRY

    open_metrics()
    names = {metric.name: metric.type for metric in REGISTRY.collect() if metric.name.startswith("lipsformer_")}
    counters = ("requests", "refusals", "accepted", "answered", "decoder_deaths", "runtime_fallbacks", "runtime_faults",
                "not_accepted", "shadow")  # fmt: skip
    gauges = ("pending", "queue_depth", "reading", "model_info", "drift", "drift_answers", "drift_not_accepted")
    assert names == {
        **{f"lipsformer_{name}": "counter" for name in (*counters, "reloads", "worker_starts")},
        **{f"lipsformer_{name}": "gauge" for name in gauges},
        **{f"lipsformer_{name}": "histogram" for name in ("stage_seconds", "batch_size")},
    }


class Log:
    """The log of this process, in a pipe."""

    def __init__(self, log_format: Any) -> None:
        self.read_end, self.write_end = os.pipe()
        self.writing = configure_logs(log_format, descriptor=self.write_end)

    def lines(self) -> list[str]:
        """Everything that was written, once the writing has ended."""

        def end() -> None:
            self.writing.close(20)
            os.close(self.write_end)

        ending = threading.Thread(target=end)
        ending.start()
        with os.fdopen(self.read_end, "rb") as pipe:
            text = pipe.read().decode()
        ending.join()
        assert text.endswith("\n")
        return text.split("\n")[:-1]


@pytest.fixture
def untouched_logging() -> Iterator[None]:
    """Puts the loggers back: the configuration is the process's."""
    names = ("", "bentoml", "circus", "uvicorn", "uvicorn.error", "uvicorn.access", "lipsformer.serving")
    loggers = [logging.getLogger(name) for name in names]
    before = [(one.handlers[:], one.level, one.propagate) for one in loggers]
    yield
    logging.raiseExceptions = True
    for one, (handlers, level, propagate) in zip(loggers, before, strict=True):
        one.handlers[:], one.propagate = handlers, propagate
        one.setLevel(level)


@pytest.mark.usefixtures("untouched_logging")
def test_a_json_line_has_all_fields_of_a_request() -> None:
    log = Log("json")
    logger = logging.getLogger("lipsformer.serving.access")
    twice = [Span(stage="decode", start=1.0, end=1.2), Span(stage="decode", start=1.1, end=1.5)]
    record = a_record(spans=twice, start=1.0, end=2.0, batches=[2, 8], reason="damaged")
    logger.info("POST /classify 200", extra={"fields": access_fields(record)})
    logging.getLogger("uvicorn.error").warning("Invalid HTTP request received.")
    logging.getLogger("uvicorn.error").info("Started server process")  # not worth a line
    event, foreign = map(json.loads, log.lines())
    moment = event.pop("time")
    assert len(moment) == len("2026-01-01T00:00:00.000Z")
    assert moment.endswith("Z")
    assert event == {
        "level": "info",
        "message": "POST /classify 200",
        "pid": os.getpid(),
        "request_id": "r-1",
        "method": "POST",
        "route": "/classify",
        "status": 200,
        "reason": "damaged",
        "bytes": 5000,
        "images": 1,
        "batch": 8,
        "decode_ms": 500.0,
        "total_ms": 1000.0,
        "client": "192.0.2.7",
    }
    assert (foreign["level"], foreign["logger"]) == ("warning", "uvicorn.error")


@pytest.mark.usefixtures("untouched_logging")
@pytest.mark.parametrize("log_format", ["text", "json"])
def test_nobody_forges_a_line_or_commands_a_terminal(log_format: str) -> None:
    log = Log(log_format)
    logger = logging.getLogger("lipsformer.serving")
    logger.warning("no %s", FORGED, extra={"fields": {"request_id": FORGED, "name": 'a" status=500 "', FORGED: 1}})
    try:
        raise ValueError(FORGED)
    except ValueError:
        logger.exception("failed")
    lines = log.lines()
    assert all(line.isprintable() for line in lines)
    if log_format == "json":
        event, failure = map(json.loads, lines)
        assert event["request_id"] == FORGED  # escaped, not lost
        assert FORGED.splitlines()[1] in failure["exception"]
    else:
        assert [line for line in lines if line.startswith("20")] == [lines[0], lines[1]]  # the rest is indented
        assert "warning no " in lines[0]
        assert all(line.startswith("    ") for line in lines[2:])
        assert r'name="a\" status=500 \""' in lines[0]


@pytest.mark.usefixtures("untouched_logging")
def test_a_text_line_is_short() -> None:
    log = Log("text")
    fields = access_fields(a_record(spans=[], batches=[], client=None, start=1.0, end=1.25))
    logging.getLogger("lipsformer.serving.access").info("POST /classify 200", extra={"fields": fields})
    (line,) = log.lines()
    assert line.partition(" ")[2] == "info    POST /classify 200 request_id=r-1 bytes=5000 images=1 total_ms=250.0"


@pytest.mark.usefixtures("untouched_logging")
def test_an_unread_pipe_blocks_nobody_and_drops_are_counted() -> None:
    log = Log("json")
    logger = logging.getLogger("lipsformer.serving")
    for number in range(15_000):  # far more than the pipe and the queue hold
        logger.info("line %d", number)
    dropped = log.writing.dropped
    assert dropped > 0
    events = [json.loads(line) for line in log.lines()]  # each is whole
    told = [event for event in events if "dropped" in event["message"]]
    assert sum(int(event["message"].split()[0]) for event in told) == dropped
    assert len(events) - len(told) + dropped == 15_000


def test_an_observer_logs_known_methods_and_failures_as_warnings() -> None:
    script = """
from lipsformer.serving.observability import Observer, RequestRecord
observer = Observer.start(log_format="json")
assert not observer.keeps_predictions
for method, status in (("GET", 404), ("X" * 5000, 405), ("POST", 500)):
    observer.observe(RequestRecord(
        request_id="r", method=method, route="other", client=None, traceparent=None, start=1.0, status=status, end=2.0
    ))
observer.close()
"""
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    seen = [(event["level"], event["message"]) for event in map(json.loads, done.stderr.splitlines())]
    assert seen == [("info", "GET other 404"), ("info", "_OTHER other 405"), ("warning", "POST other 500")]


def test_background_work_survives_failures_and_can_be_abandoned() -> None:
    gate, consumed = threading.Event(), []

    def consume(items: Any) -> None:
        if "bad" in items:
            raise OSError("no")
        gate.wait(20)
        consumed.extend(items)

    background = Background[str](consume, name="test", capacity=10)
    background.put("bad")
    while not background.dropped:
        time.sleep(0.001)
    background.put("good")
    background.close(0.01)  # it hangs at the gate, and close returns
    assert consumed == []
    gate.set()
    background.close(20)
    assert (consumed, background.dropped) == (["good"], 1)


class Collector(http.server.BaseHTTPRequestHandler):
    """Takes traces as an OpenTelemetry collector does."""

    spans: ClassVar[list[Any]] = []
    resources: ClassVar[list[dict[str, str]]] = []

    def do_POST(self) -> None:
        request = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["Content-Length"])))
        for of_resource in request.resource_spans:
            self.resources.append({one.key: one.value.string_value for one in of_resource.resource.attributes})
            self.spans.extend(span for scope in of_resource.scope_spans for span in scope.spans)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Collector]]:
    """A collector that the environment names."""
    Collector.spans.clear()
    Collector.resources.clear()
    with running(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector)) as url:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        yield Collector


def traced(record: RequestRecord) -> None:
    """Sends the spans of one record."""
    tracer = open_tracer(os.environ)
    assert tracer is not None
    tracer.put(record)
    tracer.close()


def attributes(span: Any) -> dict[str, Any]:
    return {one.key: one.value.string_value or one.value.int_value for one in span.attributes}


def test_a_request_becomes_a_span_with_its_stages_inside(collector: type[Collector]) -> None:
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    before = time.time_ns()
    record = a_record(traceparent=f"00-{trace}-{parent}-01", status=503, reason="stopping", precision="fp32")
    traced(record)
    spans = {span.name: span for span in collector.spans}
    assert sorted(spans) == ["POST /classify", "decode", "infer", "read"]
    request = spans.pop("POST /classify")
    assert {span.trace_id.hex() for span in collector.spans} == {trace}
    assert request.parent_span_id.hex() == parent
    assert {span.parent_span_id for span in spans.values()} == {request.span_id}
    assert request.end_time_unix_nano - request.start_time_unix_nano == pytest.approx(40e6, abs=1000)
    assert spans["decode"].start_time_unix_nano - request.start_time_unix_nano == pytest.approx(10e6, abs=1000)
    assert spans["decode"].end_time_unix_nano - spans["decode"].start_time_unix_nano == pytest.approx(20e6, abs=1000)
    assert abs(request.start_time_unix_nano - before) < 60e9  # wall clock, not perf_counter's
    assert request.kind == request.SPAN_KIND_SERVER
    assert request.status.code == request.status.STATUS_CODE_ERROR
    assert attributes(request) == {
        "http.request.method": "POST",
        "http.route": "/classify",
        "http.response.status_code": 503,
        "http.request.body.size": 5000,
        "error.type": "stopping",
        "lipsformer.request_id": "r-1",
        "lipsformer.reason": "stopping",
        "lipsformer.images": 1,
        "lipsformer.batch": 4,
        "lipsformer.precision": "fp32",
    }
    assert collector.resources[0]["service.name"] == "lipsformer"
    assert "192.0.2.7" not in str(collector.spans)  # the client stays out of traces


@pytest.mark.parametrize(
    "traceparent",
    [
        "",
        "nonsense",
        "00-00000000000000000000000000000000-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
        "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
        "00-0af7651916cd43dd8448eb211c80319\n-b7ad6b7169203331-01",
        "00-" + "0" * 100_000,
    ],
)
def test_a_malformed_parent_starts_a_new_trace(collector: type[Collector], traceparent: str) -> None:
    traced(a_record(traceparent=traceparent, spans=[], route="other", status=415, reason="not_an_image"))
    (span,) = collector.spans
    assert span.parent_span_id == b""
    assert span.trace_id.hex() not in ("0af7651916cd43dd8448eb211c80319c", "0" * 32)
    assert span.name == "POST"
    assert "http.route" not in attributes(span)
    assert span.status.code == span.status.STATUS_CODE_UNSET  # a refusal is no failure of the server


def test_the_variables_of_opentelemetry_work(collector: type[Collector], monkeypatch: pytest.MonkeyPatch) -> None:
    traced(a_record(traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"))  # its parent is not sampled
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    traced(a_record())
    assert collector.spans == []
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_on")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "fruit")
    traced(a_record())
    assert len(collector.spans) == 4
    assert collector.resources[0]["service.name"] == "fruit"


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, False),
        ({"OTEL_SERVICE_NAME": "fruit"}, False),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}, False),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}, False),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:9"}, True),
    ],
)
def test_traces_are_made_where_they_are_asked_for(environment: dict[str, str], wanted: bool) -> None:
    tracer = open_tracer(environment)
    assert (tracer is not None) == wanted
    if tracer is not None:
        tracer.close()


def test_unsupported_exporters_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="OTEL_TRACES_EXPORTER=zipkin: use otlp or none"):
        open_tracer({"OTEL_TRACES_EXPORTER": "zipkin"})
    with pytest.raises(InputError, match="use http/protobuf"):
        open_tracer({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"})
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http", None)
    with pytest.raises(InputError, match=r"pip install 'lipsformer\[otlp\]'"):
        open_tracer({"OTEL_TRACES_EXPORTER": "otlp"})


def test_a_collector_that_is_down_holds_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lipsformer.serving.observability.tracing.CLOSE_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # it takes connections and never answers
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        tracer = open_tracer(os.environ)
        assert tracer is not None
        for _ in range(3000):
            tracer.put(a_record())
        tracer.close()


MONITORED = """
import sys
from pathlib import Path
from lipsformer.inference.classification import Classification, Prediction
from lipsformer.serving.bento.monitoring import BentoMonitor
from lipsformer.serving.observability import Classified, Observer, RequestRecord

observer = Observer.start(log_format="json", access_log=False, open_monitor=lambda: BentoMonitor(Path(sys.argv[1])))
assert observer.keeps_predictions
top = Prediction(label="ba\\nna\\u2028na", index=3, score=0.75), Prediction(label="kiwi", index=1, score=0.25)
taken = Classification(predictions=top, accepted=True, distance=0.5)
refused = Classification(predictions=top[1:], accepted=False, reason="low_score", distance=0.5)
plain = Classification(predictions=top[1:])
for number in range(3):
    observer.observe(RequestRecord(
        request_id=f"r-{number}", method="POST", route="/classify_batch", client="192.0.2.7", traceparent=None,
        start=1.0, status=200, images=2, sha256="ab" * 32, precision="int8", end=1.1,
        predictions=[
            Classified(bytes=100 + number, classification=taken),
            Classified(bytes=7, classification=plain if number else refused),
        ],
    ))
observer.observe(RequestRecord(request_id="r-4", method="GET", route="/info", client=None, traceparent=None, start=1.0))
observer.close()
"""


def monitored(folder: Path) -> str:
    """What the process of MONITORED says on stderr."""
    done = subprocess.run(
        [sys.executable, "-c", MONITORED, folder], check=True, capture_output=True, text=True, env={**os.environ}
    )
    return done.stderr


def test_predictions_are_monitored_without_the_image_and_its_sender(tmp_path: Path) -> None:
    assert '"level"' not in monitored(tmp_path / "new" / "folder")
    (data,) = tmp_path.rglob("data.*.log")
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    assert [row["request_id"] for row in rows] == ["r-0", "r-0", "r-1", "r-1", "r-2", "r-2"]
    assert [row["bytes"] for row in rows] == [100, 7, 101, 7, 102, 7]
    assert [row["accepted"] for row in rows] == ["yes", "no", "yes", "", "yes", ""]
    for row in rows:
        assert row.pop("time").endswith("+00:00")
        del row["timestamp"], row["trace_id"]  # BentoML's own
    label = "ba\nna\u2028na"
    assert rows[0] == {
        "request_id": "r-0",
        "sha256": "ab" * 8,
        "precision": "int8",
        "bytes": 100,
        "label": label,
        "score": 0.75,
        "accepted": "yes",
        "top": [{"label": label, "score": 0.75}, {"label": "kiwi", "score": 0.25}],
    }
    (schema,) = tmp_path.rglob("schema.*.log")
    assert {column["name"] for column in json.loads(schema.read_text())["columns"]} == {*rows[0], "time"} - {
        "request_id"
    }
    assert not any("192.0.2.7" in file.read_text() for file in tmp_path.rglob("*.log"))


def test_a_full_disk_is_reported_in_a_line_and_not_per_image(tmp_path: Path) -> None:
    data = tmp_path / "predictions" / "data"
    data.mkdir(parents=True)
    (data / "data.0.log").symlink_to("/dev/full")
    said = monitored(tmp_path)
    assert "Traceback" not in said
    told = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    assert 0 < len(told) <= 3  # of five that failed after the first
    assert all("predictions could not be monitored" in event["message"] for event in told)


def test_a_folder_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"LIPSFORMER_MONITORING=.*file/in: cannot be created"):
        BentoMonitor(tmp_path / "file" / "in")
    with pytest.raises(InputError, match="BentoML cannot use this name"):
        BentoMonitor(tmp_path / "it's")


CHECKED = """
import os, sys
from lipsformer.serving.bento.service import Classifier

for folder in sys.argv[1:]:
    os.environ["LIPSFORMER_MONITORING"] = folder
    try:
        Classifier.inner.check()
    except SystemExit as stop:
        print(stop.code)
"""


def test_a_server_that_cannot_write_predictions_does_not_start(tmp_path: Path) -> None:
    """Found by its first check: a worker that ends is started again and again."""
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    folders = [tmp_path / "file", tmp_path / "file" / "in", tmp_path / "loop", tmp_path / "it's", "/proc/predictions"]
    command = [sys.executable, "-c", CHECKED, *folders]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ})
    assert done.stdout.split() == ["2"] * len(folders)
    lines = done.stderr.splitlines()
    assert [line.startswith(f"lipsformer: LIPSFORMER_MONITORING={folder}") or "it's" in line
            for line, folder in zip(lines, folders, strict=True)] == [True] * len(folders)  # fmt: skip
