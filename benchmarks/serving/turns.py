"""Loads that take turns, so that a machine whose speed changes is fair to each."""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from load import Load, generate
from memory import processor_seconds, spent
from servers import Server

__all__ = ["Side", "add_turn_arguments", "processor_cells", "ratio_cells", "take_turns"]

WARM_UP = 2  # seconds

Round = Mapping[str, Mapping[str, Any]]  # by side


@dataclasses.dataclass(frozen=True, kw_only=True)
class Side:
    """A server, the kind of requests that it gets, and what may be answered to them; `url` if it is not /classify."""

    server: Server
    expected: Mapping[str, str]
    kind: str = "raw"
    url: str | None = None


def add_turn_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8, help="of a turn")
    parser.add_argument("--clients", type=int, default=64)


def take_turns(sides: Mapping[str, Side], arguments: argparse.Namespace) -> list[Round]:
    """What each side reached in each round; the order changes with every round, and the first one only warms up."""
    rounds = []
    for turn in range(arguments.rounds + 1):
        found = {}
        for name in sorted(sides, reverse=turn % 2 == 1):
            side = sides[name]
            load = Load(
                url=side.url or side.server.url,
                mix={side.kind: 1},
                expected=side.expected,
                seconds=arguments.seconds + WARM_UP,
                warm_up=WARM_UP,
                clients=arguments.clients,
            )
            before = processor_seconds(side.server)
            report = generate(load)
            cpu = spent(before, processor_seconds(side.server), report["requests"])
            found[name] = {
                **{key: report[key] for key in ("per_second", "outcomes", "latency_ms", "generator")},
                "cpu_ms": cpu,
            }
        if turn > 0:
            rounds.append(found)
            print({name: report["per_second"] for name, report in found.items()}, flush=True)
    return rounds


def ratio_cells(rounds: Sequence[Round], old: str, new: str, *, digits: int = 0) -> str:
    """Cells of a table: the medians of both sides, and of new / old with its lowest and highest."""
    rates = {side: [turn[side]["per_second"] for turn in rounds] for side in (old, new)}
    ratios = [after / before for before, after in zip(rates[old], rates[new], strict=True)]
    before, after = (f"{statistics.median(rates[side]):.{digits}f}" for side in (old, new))
    return f"{before} | {after} | **{statistics.median(ratios):.2f}** | {min(ratios):.2f} to {max(ratios):.2f}"


def processor_cells(rounds: Sequence[Round], sides: Sequence[str]) -> list[str]:
    """The median milliseconds of processor time a photo, of all processes of each side's server."""
    return [f"{statistics.median(sum(turn[side]['cpu_ms']) for turn in rounds):.2f}" for side in sides]
