"""Throughput at saturation of two checkouts' servers, which take turns."""

from __future__ import annotations

import argparse
import contextlib
import statistics
from pathlib import Path
from typing import Any

from bodies import expectations
from bundles import bundle
from load import Load, generate
from servers import our_server

from lipsformer.inference.predictor import load_predictor

__all__ = ["add_arguments", "run", "table"]

NEW = Path(__file__).parents[2]
WARM_UP = 2  # seconds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--old", type=Path, required=True, help="another checkout, which reads the same bundles")
    parser.add_argument("--models", nargs="+", default=["tiny:fp32", "tiny:int8", "cifar10:fp32"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8, help="of a turn")
    parser.add_argument("--clients", type=int, default=64)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    return {model: _model(model, arguments) for model in arguments.models}


def _model(model: str, arguments: argparse.Namespace) -> dict[str, Any]:
    name, _, precision = model.partition(":")
    path = bundle(name, arguments.work)
    expected = expectations(load_predictor(path, precision=precision, threads=1))
    rounds = []
    with contextlib.ExitStack() as stack:
        servers = {
            build: stack.enter_context(
                our_server(path, arguments.work / f"{build}.log", "--precision", precision, checkout=checkout)
            )
            for build, checkout in {"old": arguments.old, "new": NEW}.items()
        }
        for turn in range(arguments.rounds + 1):
            found = {}
            for build in sorted(servers, reverse=turn % 2 == 1):
                load = Load(
                    url=servers[build].url,
                    mix={"raw": 1},
                    expected=expected,
                    seconds=arguments.seconds + WARM_UP,
                    warm_up=WARM_UP,
                    clients=arguments.clients,
                )
                report = generate(load)
                found[build] = {name: report[name] for name in ("per_second", "outcomes", "latency_ms")}
            if turn > 0:  # the first one warms up
                rounds.append(found)
                print(model, {build: report["per_second"] for build, report in found.items()}, flush=True)
    return {"rounds": rounds}


def table(result: dict[str, Any]) -> str:
    lines = ["| model | old, photos/s | new, photos/s | new / old | lowest to highest |", "|---|---:|---:|---:|---:|"]
    for model, row in result.items():
        rates = {build: [turn[build]["per_second"] for turn in row["rounds"]] for build in ("old", "new")}
        ratios = [new / old for old, new in zip(rates["old"], rates["new"], strict=True)]
        old, new = (f"{statistics.median(rates[build]):.1f}" for build in ("old", "new"))
        span = f"{min(ratios):.2f} to {max(ratios):.2f}"
        lines.append(f"| {model} | {old} | {new} | **{statistics.median(ratios):.2f}** | {span} |")
    return "\n".join(lines)
