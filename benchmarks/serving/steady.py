"""Many clients for minutes: every answer is right or a deliberate 503, and none is lost."""

from __future__ import annotations

import argparse
from typing import Any

from bodies import expectations
from bundles import bundle
from load import Load, generate
from servers import our_server
from summary import outcome_table

from lipsformer.inference.predictor import load_predictor

__all__ = ["add_arguments", "run", "table"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--workers", type=int, default=1)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    path = bundle("cifar10", arguments.work)
    expected = expectations(load_predictor(path, threads=1))
    with our_server(path, arguments.work / "server.log", "--workers", str(arguments.workers)) as server:
        load = Load(
            url=server.url,
            mix={"raw": 1, "form": 1},
            expected=expected,
            seconds=arguments.seconds,
            clients=arguments.clients,
        )
        return generate(load)


def table(result: dict[str, Any]) -> str:
    return outcome_table({"steady": result})
