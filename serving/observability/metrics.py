"""Prometheus metrics. Their names are a contract with dashboards and alerts.

Every worker keeps its own in a file of the folder that PROMETHEUS_MULTIPROC_DIR names (BentoML sets it), and /metrics
of any worker adds all of them up. Without that variable the metrics are those of one process.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lipsformer.bundle.acceptance import Refusal

from .record import RequestRecord

if TYPE_CHECKING:
    from prometheus_client import Counter, Gauge, Histogram

__all__ = ["Metrics", "open_metrics"]

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
STAGES = ("read", "decode", "queue", "infer", "explain", "total")
MODEL_LABELS = ("model", "provider", "file", "precision", "sha256", "fallback")
FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"


@functools.cache
def open_metrics() -> Metrics:
    """This process's metrics, a singleton. Call it in a worker, after the folder was set.

    It removes the gauges of workers that are gone: what a killed one had pending would be counted forever.
    """
    if FOLDER_VARIABLE in os.environ:
        _remove_dead_gauges(Path(os.environ[FOLDER_VARIABLE]))
    metrics = Metrics()
    metrics.worker_starts.inc()
    return metrics


class Metrics:
    """The counters, gauges and histograms of one worker; `open_metrics` creates them.

    Attributes:
        accepted: images admitted; each must be counted as answered at its end, whatever the answer and even if its
            client is gone: accepted - answered - pending is what was lost with killed workers.
        answered: see `accepted`.
        pending: images accepted and not yet answered.
        queue_depth: decoded images that wait for the runtime.
        reading: requests whose body is arriving.
        batch_size: observed once per batch, however many requests it answers.
        fallbacks: runtimes that were skipped for the next one.
        worker_starts: worker processes started.
        drift_answers: answers that are compared with the bundle's reference histograms.
        drift_not_accepted: the share of them that was not accepted.
    """

    def __init__(self) -> None:
        # Imported here: prometheus_client reads the variable when it is imported.
        from prometheus_client import Counter, Gauge, Histogram

        def live(name: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
            return Gauge(f"lipsformer_{name}", text, labels, multiprocess_mode="livesum")

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"lipsformer_{name}", text, labels)

        self.accepted = counter("accepted", "Images admitted.")
        self.answered = counter("answered", "Accepted images that were answered, with classes or with a problem.")
        self.pending = live("pending", "Images accepted and not yet answered.")
        self.queue_depth = live("queue_depth", "Decoded images that wait for the runtime.")
        self.reading = live("reading", "Requests whose body is arriving.")
        self.fallbacks = counter("runtime_fallbacks", "Runtimes that were skipped for the next one.")
        self.worker_starts = counter("worker_starts", "Worker processes started.")
        self.drift_answers = live("drift_answers", "Latest answers that are compared with the reference.")
        self.drift_not_accepted = Gauge(
            "lipsformer_drift_not_accepted",
            "Share of these answers that was not accepted.",
            multiprocess_mode="livemax",
        )
        self._drift = Gauge(
            "lipsformer_drift",
            "Population stability index of these answers, less that of chance.",
            ("of",),
            multiprocess_mode="livemax",
        )
        self._shadow = counter("shadow", "Images for the shadow, by outcome.", "outcome")
        self._requests = counter("requests", "Requests that ended, by route and status.", "route", "status")
        self._refusals = counter("refusals", "Requests and images that were refused, by reason.", "reason")
        self._not_accepted = counter("not_accepted", "Images whose answer was not accepted, by reason.", "reason")
        self._deaths = counter("decoder_deaths", "Decoder processes that were killed or died, by cause.", "cause")
        self._faults = counter("runtime_faults", "Batches that the runtime failed on, by outcome.", "outcome")
        self._reloads = counter("reloads", "Reloads of a changed bundle, by outcome.", "outcome")
        self._model = live("model_info", "Workers that run this model.", MODEL_LABELS)
        self._stage = Histogram("lipsformer_stage_seconds", "Seconds by stage.", ("stage",), buckets=SECONDS)
        self.batch_size = Histogram("lipsformer_batch_size", "Images computed together.", buckets=BATCH_SIZES)
        self._stages: dict[str, Histogram] = {name: self._stage.labels(name) for name in STAGES}
        self._ended: dict[tuple[str, int], Counter] = {}
        self._running: Gauge | None = None
        for gauge in (self.pending, self.queue_depth, self.reading):
            gauge.set(0)  # an earlier process with this PID may have left its file

    def refused(self, reason: str) -> None:
        """Counts a refusal that is in no record: an image of a batch request. Reasons are a fixed set."""
        self._refusals.labels(reason).inc()

    def not_accepted(self, reason: Refusal) -> None:
        """Counts an image whose answer was not accepted: the model has a rule for that."""
        self._not_accepted.labels(reason).inc()

    def drifts(self, of: str, index: float) -> None:
        """Sets how far the classes, scores or distances of this worker's latest answers are from the reference."""
        self._drift.labels(of).set(index)

    def shadowed(self, outcome: Literal["agreed", "disagreed", "failed", "dropped"]) -> None:
        """Counts an image that was sampled for the shadow."""
        self._shadow.labels(outcome).inc()

    def decoder_died(self, cause: Literal["timeout", "crash"]) -> None:
        """Counts a decoder process that was killed because it was slow, or died."""
        self._deaths.labels(cause).inc()

    def runtime_fault(self, outcome: Literal["retried", "failed", "rebuilt"]) -> None:
        """Counts a batch that the runtime failed on."""
        self._faults.labels(outcome).inc()

    def reloaded(self, outcome: Literal["swapped", "kept"]) -> None:
        """Counts a reload of a changed bundle."""
        self._reloads.labels(outcome).inc()

    def runs(self, *, model: str, provider: str, file: str, precision: str, sha256: str, fallback: bool) -> None:
        """Sets the model that this worker runs from now on; the one before becomes 0."""
        running = self._model.labels(model, provider, file, precision, sha256, "true" if fallback else "false")
        if self._running not in (None, running):
            self._running.set(0)
        running.set(1)
        self._running = running

    def observe(self, record: RequestRecord) -> None:
        """Counts a request that has ended. It has a total only if its body was read: early refusals are fast."""
        ended = (record.route, record.status)
        requests = self._ended.get(ended)
        if requests is None:
            requests = self._ended[ended] = self._requests.labels(*ended)
        requests.inc()
        if record.reason is not None:
            self.refused(record.reason)
        for span in record.spans:
            self._stages[span.stage].observe(span.seconds)
        if record.spans:
            self._stages["total"].observe(record.end - record.start)

    def exposition(self) -> bytes:
        """The metrics of all workers, or of this process alone, in Prometheus' text format."""
        from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
        from prometheus_client.multiprocess import MultiProcessCollector

        if FOLDER_VARIABLE not in os.environ:
            return generate_latest(REGISTRY)
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)


def _remove_dead_gauges(folder: Path) -> None:
    """Removes the gauges of processes that are gone; their counters stay."""
    for file in folder.glob("gauge_live*_*.db"):
        pid = file.stem.rpartition("_")[2]
        if pid.isdigit() and not _lives(int(pid)):
            file.unlink(missing_ok=True)  # another worker may have been faster


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
