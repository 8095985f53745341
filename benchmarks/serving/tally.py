"""The account of a load: every request ends in exactly one row of it."""

from __future__ import annotations

import re
from array import array
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from bodies import Kind

__all__ = ["Tally", "percentiles"]

# In an answer of /classify, and in the output "labels" of the Open Inference Protocol.
LABEL = re.compile(rb'"(?:label"\s*:\s*|labels",[^}]*"data":\[)"([^"]*)"')
REASON = re.compile(rb'"reason"\s*:\s*"([^"]*)"')
DELIBERATE = ("overloaded", "stopping")


class Tally:
    """Counts outcomes and keeps latencies, counted from the moment at which a request was to be sent.

    The outcomes: `right` (200 with the label that load_predictor gives, or a refusal for the reason that it gives),
    `shed` (503, overloaded or stopping), `wrong` (200 with another label), `unexpected` (any other answer), `lost`
    (no answer), `refused` (no connection), `left` (the client went away, as it was meant to).
    """

    def __init__(self, start: float, warm: float, stop: float) -> None:
        self.start = start
        self.window = warm, stop  # throughput is what came in between
        self.rows: Counter[tuple[str, str, str]] = Counter()  # kind, outcome, detail
        self.latencies: defaultdict[str, array[float]] = defaultdict(lambda: array("d"))
        self.timeline: defaultdict[int, Counter[str]] = defaultdict(Counter)
        self.waits: defaultdict[str, array[float]] = defaultdict(
            lambda: array("d")
        )  # from the sending, not the due time
        self.lags = array("d")  # seconds by which the generator itself was late
        self.sent = 0  # of them within the load's time
        self.times = array("d")  # at which photos were classified rightly, within the window
        self.races = 0
        self.race_seconds = 0.0

    def answered(self, kind: Kind, status: int, body: bytes, latency: float, now: float, waited: float) -> str:
        """Enters an answer, `latency` after it was due and `waited` seconds after it was sent; returns the outcome."""
        found = (LABEL if status == 200 else REASON).search(body)
        said = found[1].decode() if found else ""
        if status == 503 and said in DELIBERATE:
            outcome = "shed"
        elif said in kind.expected:
            outcome = "right"
        else:
            outcome = "wrong" if status == 200 and kind.has_label else "unexpected"
        self.waits[outcome].append(waited)
        self.ended(kind, outcome, f"{status}" if status == 200 else f"{status} {said}", latency, now)
        return outcome

    def ended(self, kind: Kind, outcome: str, detail: str, latency: float, now: float) -> None:
        """Enters the end of a request."""
        self.rows[kind.family, outcome, detail] += 1
        classified = outcome == "right" and detail == "200"
        self.latencies["200" if classified else outcome].append(latency)
        if classified and self.window[0] <= now <= self.window[1]:
            self.times.append(now)
        self.timeline[int(now - self.start)][outcome] += 1

    def begun(self, due: float, now: float) -> None:
        """Enters that a request is sent."""
        self.lags.append(now - due)
        self.sent += now <= self.window[1]

    def raced(self, seconds: float) -> None:
        """Enters a request that a kept connection dropped unread, `seconds` after it was sent; it is sent again."""
        self.races += 1
        self.race_seconds = max(self.race_seconds, seconds)

    def report(self, cpu_seconds: float) -> dict[str, Any]:
        """Everything as plain data. `per_second` is of answers with the right label, `sent_per_second` of all sent.

        Photos come in batches: the slope of a line through the count over time does not depend on where in a batch
        the window begins and ends.
        """
        seconds = self.window[1] - self.start
        outcomes: Counter[str] = Counter()
        for (_, outcome, _), count in self.rows.items():
            outcomes[outcome] += count
        warm, stop = self.window
        few = len(self.times) < 2 or self.times[-1] - self.times[0] < (stop - warm) / 2  # a line through a batch or two
        slope = len(self.times) / (stop - warm) if few else np.polyfit(self.times, np.arange(len(self.times)), 1)[0]
        return {
            "seconds": round(seconds, 3),
            "requests": sum(outcomes.values()),
            "outcomes": dict(outcomes),
            "per_second": round(float(slope), 2),
            "sent_per_second": round(self.sent / seconds, 2),
            "keep_alive_races": self.races,
            "longest_race_ms": round(self.race_seconds * 1000, 2),
            "latency_ms": {name: percentiles(values) for name, values in self.latencies.items() if values},
            "answer_ms": {name: percentiles(values) for name, values in self.waits.items()},
            "generator": {"cpu_share": round(cpu_seconds / seconds, 3), "lag_ms": percentiles(self.lags)},
            "rows": [[*row, count] for row, count in sorted(self.rows.items())],
            "timeline": {second: dict(counts) for second, counts in sorted(self.timeline.items())},
        }


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """Median, tail and maximum in milliseconds; empty without values."""
    if not seconds:
        return {}
    p50, p90, p99, worst = (float(value) * 1000 for value in np.percentile(seconds, (50, 90, 99, 100)))
    return {"p50": round(p50, 2), "p90": round(p90, 2), "p99": round(p99, 2), "max": round(worst, 2)}
