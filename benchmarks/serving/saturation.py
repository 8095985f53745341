"""Throughput at saturation beside a plain loop: what the server costs on top of decoding and inference."""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

from bodies import expectations
from bundles import bundle
from load import Load, generate
from loop import Loop
from memory import processor_seconds, spent
from servers import Server, our_server

from lipsformer.inference.predictor import load_predictor
from lipsformer.system.hardware import cores

__all__ = ["add_arguments", "run", "table"]

BATCHES = (1, 16)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--models", nargs="+", default=["cifar10:fp32", "tiny:fp32", "tiny:int8"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=10, help="of a turn")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--body", choices=["raw", "form"], default="raw")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    return {model: _model(model, arguments) for model in arguments.models}


def _model(model: str, arguments: argparse.Namespace) -> dict[str, Any]:
    name, _, precision = model.partition(":")
    path, work = bundle(name, arguments.work), Path(arguments.work)
    expected = expectations(load_predictor(path, precision=precision, threads=1))
    loops = [Loop(path, precision, cores(), batch) for batch in BATCHES]
    rounds = []
    with our_server(path, work / "server.log", "--precision", precision) as server:
        try:
            _serve(server, expected, arguments, 3)
            for _ in range(arguments.rounds):
                plain = {loop.batch: loop.run(arguments.seconds) for loop in loops}
                rounds.append({"loop": plain, **_serve(server, expected, arguments, arguments.seconds)})
                print(model, plain, rounds[-1]["server"], rounds[-1]["cpu_ms"], flush=True)
        finally:
            for loop in loops:
                loop.close()
    return {"rounds": rounds, **_summary(rounds)}


def _serve(server: Server, expected: dict[str, str], arguments: argparse.Namespace, seconds: float) -> dict[str, Any]:
    load = Load(
        url=server.url,
        mix={arguments.body: 1},
        expected=expected,
        seconds=seconds + 2,
        warm_up=2,
        clients=arguments.clients,
    )
    before = processor_seconds(server)
    report = generate(load)
    cpu = spent(before, processor_seconds(server), report["requests"])
    keep = ("outcomes", "latency_ms", "generator", "keep_alive_races")
    return {"server": report["per_second"], "cpu_ms": cpu, **{name: report[name] for name in keep}}


def _summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    better = max(BATCHES, key=lambda batch: statistics.median(turn["loop"][batch][0] for turn in rounds))
    ratios = [turn["server"] / turn["loop"][better][0] for turn in rounds]
    return {
        "better_batch": better,
        "loop": [statistics.median(turn["loop"][batch][0] for turn in rounds) for batch in BATCHES],
        "loop_cpu_ms": statistics.median(turn["loop"][better][1] for turn in rounds),
        "server": statistics.median(turn["server"] for turn in rounds),
        "server_cpu_ms": statistics.median(sum(turn["cpu_ms"]) for turn in rounds),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_range": [round(min(ratios), 3), round(max(ratios), 3)],
    }


def table(result: dict[str, Any]) -> str:
    lines = [
        "| model | loop, batch 1 | loop, batch 16 | server | server / better loop | lowest to highest "
        "| processor ms a photo: loop, server | p50, p99 ms |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for model, row in result.items():
        plain = " | ".join(f"{rate:.1f}" for rate in row["loop"])
        low, high = row["ratio_range"]
        p50, p99 = (
            statistics.median(turn["latency_ms"]["200"][name] for turn in row["rounds"]) for name in ("p50", "p99")
        )
        lines.append(
            f"| {model} | {plain} | {row['server']:.1f} | {row['ratio']:.2f} | {low:.2f} to {high:.2f} "
            f"| {row['loop_cpu_ms']:.1f}, {row['server_cpu_ms']:.1f} | {p50:.0f}, {p99:.0f} |"
        )
    return "\n".join(lines)
