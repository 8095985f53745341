"""The server's metrics, for Prometheus: their names are a contract with dashboards and alerts.

Every worker keeps its own in a file of BentoML's metrics folder, and /metrics of any worker adds all of them up.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from .record import RequestRecord

if TYPE_CHECKING:
    from prometheus_client import Counter, Gauge, Histogram

__all__ = ["Metrics", "open_metrics"]

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
STAGES = ("read", "decode", "queue", "infer", "total")
MODEL_LABELS = ("model", "provider", "file", "precision", "sha256", "fallback")
FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"


@functools.cache
def open_metrics() -> Metrics:
    """This process's metrics, which there are once: to be opened in a worker after BentoML has named the folder.

    The gauges of workers that are gone leave the folder: what a killed one had pending would be counted for ever.
    """
    if FOLDER_VARIABLE in os.environ:
        _forget_the_dead(Path(os.environ[FOLDER_VARIABLE]))
    metrics = Metrics()
    metrics.worker_starts.inc()
    return metrics


class Metrics:
    """What a worker counts; `open_metrics` makes the one of this process.

    Attributes:
        accepted: images that got a place; each of them must be counted as answered at its end, whatever the answer,
            even if its client is gone: accepted - answered - pending is what was lost with killed workers.
        answered: see `accepted`.
        pending: images accepted and not yet answered.
        queue_depth: decoded images that wait for the runtime.
        reading: requests whose body arrives.
        batch_size: to be told of each batch that is computed, once, however many requests it answers.
        fallbacks: times that a runtime was left for the next one.
        worker_starts: starts of this process.
    """

    def __init__(self) -> None:
        # Here and not above: prometheus_client looks for the folder when it is imported.
        from prometheus_client import Counter, Gauge, Histogram

        def live(name: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
            return Gauge(f"lipsformer_{name}", text, labels, multiprocess_mode="livesum")

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"lipsformer_{name}", text, labels)

        self.accepted = counter("accepted", "Images that got a place.")
        self.answered = counter("answered", "Accepted images that were answered, with classes or with a problem.")
        self.pending = live("pending", "Images accepted and not yet answered.")
        self.queue_depth = live("queue_depth", "Decoded images that wait for the runtime.")
        self.reading = live("reading", "Requests whose body arrives.")
        self.fallbacks = counter("runtime_fallbacks", "Times that a runtime was left for the next one.")
        self.worker_starts = counter("worker_starts", "Worker processes that were started.")
        self._requests = counter("requests", "Requests that ended, by route and status.", "route", "status")
        self._refusals = counter("refusals", "Requests and images that were refused, by reason.", "reason")
        self._deaths = counter("decoder_deaths", "Decoder processes that were ended or died, by cause.", "cause")
        self._faults = counter("runtime_faults", "Batches that a runtime failed on, by what became of it.", "outcome")
        self._reloads = counter("reloads", "Looks at a changed bundle, by outcome.", "outcome")
        self._model = live("model_info", "1 for each worker that runs this model.", MODEL_LABELS)
        self._stage = Histogram("lipsformer_stage_seconds", "Seconds by stage.", ("stage",), buckets=SECONDS)
        self.batch_size = Histogram("lipsformer_batch_size", "Images computed together.", buckets=BATCH_SIZES)
        self._stages: dict[str, Histogram] = {name: self._stage.labels(name) for name in STAGES}
        self._ended: dict[tuple[str, int], Counter] = {}
        self._running: Gauge | None = None
        for gauge in (self.pending, self.queue_depth, self.reading):
            gauge.set(0)  # a process of the same number may have left its file

    def refused(self, reason: str) -> None:
        """Counts a refusal that no record tells of: an image of a batch request. Reasons are our own words."""
        self._refusals.labels(reason).inc()

    def decoder_died(self, cause: Literal["timeout", "crash"]) -> None:
        """Counts a decoder process that was killed for its slowness, or died."""
        self._deaths.labels(cause).inc()

    def runtime_fault(self, outcome: Literal["retried", "failed", "rebuilt"]) -> None:
        """Counts a batch that the runtime failed on."""
        self._faults.labels(outcome).inc()

    def reloaded(self, outcome: Literal["swapped", "kept"]) -> None:
        """Counts a look at a changed bundle."""
        self._reloads.labels(outcome).inc()

    def runs(self, *, model: str, provider: str, file: str, precision: str, sha256: str, fallback: bool) -> None:
        """Says what this worker runs from now on; what it ran before becomes 0."""
        running = self._model.labels(model, provider, file, precision, sha256, "true" if fallback else "false")
        if self._running not in (None, running):
            self._running.set(0)
        running.set(1)
        self._running = running

    def observe(self, record: RequestRecord) -> None:
        """Counts a request that has ended. Only one whose body was read has a total: refusals at the door are fast."""
        ended = (record.route, record.status)
        requests = self._ended.get(ended)
        if requests is None:
            requests = self._ended[ended] = self._requests.labels(*ended)
        requests.inc()
        if record.reason is not None:
            self.refused(record.reason)
        for stage in record.stages:
            self._stages[stage.name].observe(stage.end - stage.start)
        if record.stages:
            self._stages["total"].observe(record.end - record.start)


def _forget_the_dead(folder: Path) -> None:
    """Removes the live gauges of processes that are gone; their counters stay."""
    for file in folder.glob("gauge_live*_*.db"):
        pid = file.stem.rpartition("_")[2]
        if pid.isdigit() and not _lives(int(pid)):
            file.unlink(missing_ok=True)  # another worker that starts now may have been faster


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
