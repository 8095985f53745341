"""The null model behind our server and behind LitServe, with as many processes at work in each."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import signal
import statistics
from pathlib import Path
from typing import Any

from bodies import images
from bundles import bundle
from load import Load, generate
from memory import processor_seconds, spent
from servers import Server, free_port, our_server, running

__all__ = ["add_arguments", "run", "table"]

# The best that `--tune` found: API servers, workers, batch, seconds to wait for it, ZeroMQ between them or not.
LITSERVE = {"api_servers": 1, "workers": 2, "batch": 16, "batch_timeout": 0.002, "fast_queue": False}
# What it tries. Three processes are at work, as in ours: a worker and two decoders.
PROCESSES = ((1, 2), (2, 1))
BATCHES = ((1, 0.0), (16, 0.0), (16, 0.002), (16, 0.01), (64, 0.01))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--litserve", type=Path, required=True, help="a Python that has LitServe; see the README")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8, help="of a turn")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2, help="decoder processes of our one worker")
    parser.add_argument("--bodies", nargs="+", choices=["raw", "form"], default=["raw", "form"])
    parser.add_argument("--tune", action="store_true", help="try LitServe's settings instead")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    if arguments.tune:
        return {"tuning": _tune(arguments)}
    turns: list[dict[str, Any]] = []
    for _ in range(arguments.rounds):
        for log, body, name in itertools.product(("on", "off"), arguments.bodies, ("ours", "litserve")):
            start = _ours(arguments, log) if name == "ours" else _litserve(arguments, body, log, LITSERVE)
            turns.append({"server": name, "body": body, "log": log, **_turn(start, body, arguments)})
            print({key: turns[-1][key] for key in ("server", "body", "log", "per_second", "cpu_ms")}, flush=True)
    return {"litserve": LITSERVE, "turns": turns}


def _tune(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Every setting of the grid in every round, the best median first."""
    settings = [
        {"api_servers": servers, "workers": workers, "batch": batch, "batch_timeout": wait, "fast_queue": fast}
        for (servers, workers), (batch, wait), fast in itertools.product(PROCESSES, BATCHES, (True, False))
    ]
    rates: list[list[float]] = [[] for _ in settings]
    for _ in range(arguments.rounds):
        for options, found in zip(settings, rates, strict=True):
            for body in arguments.bodies:
                found.append(_turn(_litserve(arguments, body, "off", options), body, arguments)["per_second"])
            print(options, found, flush=True)
    tried = [{**options, "per_second": found} for options, found in zip(settings, rates, strict=True)]
    return sorted(tried, key=lambda row: -statistics.median(row["per_second"]))


def _ours(arguments: argparse.Namespace, log: str) -> contextlib.AbstractContextManager[Server]:
    path = bundle("null", arguments.work)
    return our_server(path, arguments.work / "server.log", THREADS=str(arguments.threads), ACCESS_LOG=log)


def _litserve(
    arguments: argparse.Namespace, body: str, log: str, settings: dict[str, Any]
) -> contextlib.AbstractContextManager[Server]:
    port = free_port()
    options = {
        **settings,
        "port": port,
        "graph": str(bundle("null", arguments.work) / "ort-fp32.onnx"),
        "form": body == "form",
        "log_level": "info" if log == "on" else "warning",
    }
    command = [str(arguments.litserve), str(Path(__file__).with_name("litserve_app.py")), json.dumps(options)]
    output = arguments.work / "litserve.log"
    return running(command, port, output, ready="/health", farewell=signal.SIGINT)


def _turn(start: contextlib.AbstractContextManager[Server], body: str, arguments: argparse.Namespace) -> dict[str, Any]:
    expected = dict.fromkeys(images(), "class 0")
    with start as server:
        load = Load(
            url=server.url,
            mix={body: 1},
            expected=expected,
            seconds=arguments.seconds + 2,
            warm_up=2,
            clients=arguments.clients,
        )
        before = processor_seconds(server)
        report = generate(load)
        cpu = spent(before, processor_seconds(server), report["requests"])
    keep = ("per_second", "outcomes", "latency_ms", "generator", "keep_alive_races")
    return {**{name: report[name] for name in keep}, "cpu_ms": cpu}


def table(result: dict[str, Any]) -> str:
    if "tuning" in result:
        return _tuning_table(result["tuning"])
    rows: dict[tuple[str, str], dict[str, list[dict[str, Any]]]] = {}
    for turn in result["turns"]:
        rows.setdefault((turn["body"], turn["log"]), {}).setdefault(turn["server"], []).append(turn)
    lines = [
        "| body | access log | ours, photos/s | LitServe | ours / LitServe | lowest to highest "
        "| processor ms a photo, by process: ours; LitServe |",
        "|---|---|---:|---:|---:|---:|---|",
    ]
    for (body, log), by_server in rows.items():
        ours, others = by_server["ours"], by_server["litserve"]
        ratios = [a["per_second"] / b["per_second"] for a, b in zip(ours, others, strict=True)]
        rates = [statistics.median(turn["per_second"] for turn in turns) for turns in (ours, others)]
        lines.append(
            f"| {body} | {log} | {rates[0]:.0f} | {rates[1]:.0f} | {statistics.median(ratios):.2f} "
            f"| {min(ratios):.2f} to {max(ratios):.2f} | {_cpu(ours)}; {_cpu(others)} |"
        )
    return "\n".join(lines)


def _cpu(turns: list[dict[str, Any]]) -> str:
    middle = sorted(turns, key=lambda turn: sum(turn["cpu_ms"]))[len(turns) // 2]["cpu_ms"]
    return " + ".join(f"{share:.2f}" for share in middle)


def _tuning_table(tried: list[dict[str, Any]]) -> str:
    names = ("api_servers", "workers", "batch", "batch_timeout", "fast_queue", "per_second")
    lines = [f"| {' | '.join(names)} |", "|" + "---|" * len(names)]
    return "\n".join(lines + [f"| {' | '.join(str(turn[name]) for name in names)} |" for turn in tried])
