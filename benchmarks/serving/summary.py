"""Reports of loads as tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["OUTCOMES", "outcome_table", "verdict"]

OUTCOMES = ("right", "shed", "wrong", "unexpected", "lost", "refused", "left")
BAD = ("wrong", "unexpected", "lost")


def outcome_table(reports: Mapping[str, Mapping[str, Any]]) -> str:
    """One row for each load: how its requests ended, photos a second, and milliseconds of the classified ones."""
    lines = [
        f"| load | requests | {' | '.join(OUTCOMES)} | races | photos/s | p50 ms | p99 ms | max ms |",
        "|---|---:|" + "---:|" * (len(OUTCOMES) + 5),
    ]
    for name, report in reports.items():
        counts = " | ".join(str(report["outcomes"].get(outcome, 0)) for outcome in OUTCOMES)
        latency = report["latency_ms"].get("200", {})
        tail = " | ".join(f"{latency[key]:.0f}" if latency else "" for key in ("p50", "p99", "max"))
        lines.append(
            f"| {name} | {report['requests']} | {counts} | {report['keep_alive_races']} "
            f"| {report['per_second']:.0f} | {tail} |"
        )
    notes = [note for name, report in reports.items() for note in _notes(name, report)]
    return "\n".join(lines + (["", *notes] if notes else []))


def verdict(report: Mapping[str, Any]) -> str:
    """Whether every request ended as it should."""
    bad = {name: count for name, count in report["outcomes"].items() if name in BAD}
    return f"failed: {bad}" if bad else "passed"


def _notes(name: str, report: Mapping[str, Any]) -> list[str]:
    return [
        f"- {name}: {count} {outcome} of kind {kind}: {detail}"
        for kind, outcome, detail, count in report["rows"]
        if outcome in BAD
    ]
