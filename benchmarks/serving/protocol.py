"""Binary tensors by the Open Inference Protocol and photos at /classify, which take turns on one null model."""

from __future__ import annotations

import argparse
from typing import Any

from bodies import images
from bundles import bundle
from servers import our_server
from turns import Side, add_turn_arguments, processor_cells, ratio_cells, take_turns

__all__ = ["add_arguments", "run", "table"]

INFER = "/v2/models/lipsformer/infer"
EXPECTED = dict.fromkeys(images(), "class 0")
SIDES = ("classify", "tensors")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_turn_arguments(parser)
    parser.add_argument("--threads", type=int, default=2, help="decoder processes of the one worker")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    settings = {"WORKERS": "1", "THREADS": str(arguments.threads)}
    with our_server(bundle("null", arguments.work), arguments.work / "protocol.log", **settings) as server:
        sides = {
            "classify": Side(server=server, expected=EXPECTED),
            "tensors": Side(server=server, expected=EXPECTED, kind="tensor", url=f"http://{server.address}{INFER}"),
        }
        return {"rounds": take_turns(sides, arguments)}


def table(result: dict[str, Any]) -> str:
    rounds = result["rounds"]
    cpu = ", ".join(processor_cells(rounds, SIDES))
    return "\n".join(
        [
            "| /classify, photos/s | tensors/s | tensors / photos | lowest to highest | processor ms: photo, tensor |",
            "|---:|---:|---:|---:|---:|",
            f"| {ratio_cells(rounds, *SIDES)} | {cpu} |",
        ]
    )
