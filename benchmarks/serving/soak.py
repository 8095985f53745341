"""Good, bad, slow and vanishing clients for half an hour: memory and open files stay where they were."""

from __future__ import annotations

import argparse
import statistics
from typing import Any

from bodies import FAMILIES, expectations
from bundles import bundle
from load import Load, generate
from memory import plot, sampling
from servers import our_server
from summary import outcome_table, verdict

from lipsformer.inference.predictor import load_predictor

__all__ = ["add_arguments", "run", "table"]

WEIGHTS = {"raw": 40.0, "form": 40.0, "png": 5.0, "large": 0.5, "stalled": 0.1}  # all others 1
WARM_UP = 0.2  # of the time: until every worker and every cache has seen every kind


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, default=1800)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--every", type=float, default=10, help="seconds between looks at the memory")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    path = bundle("cifar10", arguments.work)
    expected = expectations(load_predictor(path, threads=1))
    with our_server(path, arguments.work / "server.log") as server:
        load = Load(
            url=server.url,
            mix={family: WEIGHTS.get(family, 1.0) for family in FAMILIES},
            expected=expected,
            seconds=arguments.seconds,
            clients=arguments.clients,
        )
        with sampling(server, arguments.every) as samples:
            report = generate(load)
    samples = samples[:-1]  # the last is of an idle server
    plot(samples, arguments.results / "soak.png", "The server's processes under a mixed load")
    warm = samples[int(len(samples) * WARM_UP) :]
    quarter = max(1, len(warm) // 4)
    growth = {
        name: statistics.mean(getattr(look, name) for look in warm[-quarter:])
        / statistics.mean(getattr(look, name) for look in warm[:quarter])
        - 1
        for name in ("pss", "files", "processes")
    }
    return {"growth": growth, "report": report, "samples": [vars(look) for look in samples]}


def table(result: dict[str, Any]) -> str:
    report = result["report"]
    rows = [f"| {kind} | {outcome} | {detail} | {count} |" for kind, outcome, detail, count in report["rows"]]
    growth = ", ".join(f"{name} {value:+.1%}" for name, value in result["growth"].items())
    return "\n".join(
        [
            outcome_table({"soak": report}),
            "",
            f"- last quarter beside the first after the warm-up: {growth}",
            f"- {verdict(report)}",
            "",
            "| kind | outcome | answer | requests |",
            "|---|---|---|---:|",
            *rows,
        ]
    )
