"""Throughput at saturation of two checkouts' servers, which take turns."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from typing import Any

from bodies import expectations
from bundles import bundle
from servers import our_server
from turns import Side, add_turn_arguments, ratio_cells, take_turns

from lipsformer.inference.predictor import load_predictor

__all__ = ["add_arguments", "run", "table"]

NEW = Path(__file__).parents[2]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--old", type=Path, required=True, help="another checkout, which reads the same bundles")
    parser.add_argument("--models", nargs="+", default=["tiny:fp32", "tiny:int8", "cifar10:fp32"])
    add_turn_arguments(parser)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    return {model: _model(model, arguments) for model in arguments.models}


def _model(model: str, arguments: argparse.Namespace) -> dict[str, Any]:
    name, _, precision = model.partition(":")
    path = bundle(name, arguments.work)
    expected = expectations(load_predictor(path, precision=precision, threads=1))
    with contextlib.ExitStack() as stack:
        servers = {
            build: stack.enter_context(
                our_server(path, arguments.work / f"{build}.log", "--precision", precision, checkout=checkout)
            )
            for build, checkout in {"old": arguments.old, "new": NEW}.items()
        }
        return {
            "rounds": take_turns(
                {build: Side(server=server, expected=expected) for build, server in servers.items()}, arguments
            )
        }


def table(result: dict[str, Any]) -> str:
    lines = ["| model | old, photos/s | new, photos/s | new / old | lowest to highest |", "|---|---:|---:|---:|---:|"]
    lines += [f"| {model} | {ratio_cells(row['rounds'], 'old', 'new', digits=1)} |" for model, row in result.items()]
    return "\n".join(lines)
