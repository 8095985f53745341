"""Ten times what the server can do: it refuses at once, keeps what it accepted in time, and its memory comes back."""

from __future__ import annotations

import argparse
import time
from typing import Any

from bodies import expectations
from bundles import bundle
from load import Load, generate
from memory import Usage, sampling, usage
from servers import Server, our_server
from summary import outcome_table, verdict

from lipsformer.inference.predictor import load_predictor

__all__ = ["add_arguments", "run", "table"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--times", type=float, default=10, help="the sustainable rate")
    parser.add_argument("--clients", type=int, default=512, help="connections at most")
    parser.add_argument("--deadline", type=int, default=30, help="of the server, seconds")
    parser.add_argument("--model", choices=["cifar10", "tiny"], default="cifar10")
    parser.add_argument("--body", choices=["raw", "form"], default="raw")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    path = bundle(arguments.model, arguments.work)
    expected = expectations(load_predictor(path, threads=1))
    log, mix = arguments.work / "server.log", {arguments.body: 1.0}
    with our_server(path, log, DEADLINE=str(arguments.deadline)) as server:
        closed = Load(url=server.url, mix=mix, expected=expected, seconds=10, warm_up=2, clients=64)
        sustainable = generate(closed)["per_second"]
        before = _settled(server)
        load = Load(
            url=server.url,
            mix=mix,
            expected=expected,
            seconds=arguments.seconds,
            clients=arguments.clients,
            rate=arguments.times * sustainable,
        )
        with sampling(server, 1) as samples:
            report = generate(load)
        after = _settled(server)
    peak = max(samples, key=lambda sample: sample.pss)
    memory = {name: vars(look) for name, look in (("before", before), ("peak", peak), ("after", after))}
    return {
        "sustainable": sustainable,
        "intended": load.rate,
        "memory": memory,
        "deadline": arguments.deadline,
        "report": report,
    }


def _settled(server: Server) -> Usage:
    time.sleep(5)
    return usage(server, time.perf_counter())


def table(result: dict[str, Any]) -> str:
    report, memory = result["report"], result["memory"]
    latency = report["latency_ms"]
    shed, accepted = latency.get("shed", {}), latency.get("200", {})
    looks = "; ".join(
        f"{name} {look['pss']:.0f} ({look['rss']:.0f}), {look['files']} files" for name, look in memory.items()
    )
    return "\n".join(
        [
            outcome_table({"overload": report}),
            "",
            f"- sustainable {result['sustainable']:.0f}/s; intended {result['intended']:.0f}/s, sent "
            f"{report['sent_per_second']:.0f}/s, late by {report['generator']['lag_ms']} ms",
            f"- shed: {shed} ms after they were due, {report['answer_ms'].get('shed', {})} ms after they were sent",
            f"- accepted: {accepted} ms, deadline {result['deadline']} s",
            f"- PSS (RSS) in MiB: {looks}; after / before {memory['after']['pss'] / memory['before']['pss']:.3f}",
            f"- {verdict(report)}",
        ]
    )
