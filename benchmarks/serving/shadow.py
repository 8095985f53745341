"""What a shadow costs: servers without one and with one, which take turns."""

from __future__ import annotations

import argparse
from typing import Any

from bodies import expectations
from bundles import bundle
from servers import our_server
from turns import Side, add_turn_arguments, processor_cells, ratio_cells, take_turns

from lipsformer.inference.predictor import load_predictor

__all__ = ["add_arguments", "run", "table"]

SIDES = ("alone", "shadowed")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--models", nargs="+", default=["cifar10", "tiny"], help="each is also its own shadow")
    parser.add_argument("--share", type=float, default=0.1)
    add_turn_arguments(parser)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    return {model: _model(model, arguments) for model in arguments.models}


def _model(model: str, arguments: argparse.Namespace) -> dict[str, Any]:
    path = bundle(model, arguments.work)
    expected = expectations(load_predictor(path, precision="fp32", threads=1))
    options, share = ("--precision", "fp32"), str(arguments.share)
    with (
        our_server(path, arguments.work / "alone.log", *options) as alone,
        our_server(
            path, arguments.work / "shadowed.log", *options, "--shadow", str(path), SHADOW_SHARE=share
        ) as shadowed,
    ):
        servers = {"alone": alone, "shadowed": shadowed}
        rounds = take_turns({name: Side(server=servers[name], expected=expected) for name in SIDES}, arguments)
        counted = shadowed.get("/metrics")[1].decode()
    return {"rounds": rounds, "shadow": [line for line in counted.splitlines() if line.startswith("lipsformer_shadow")]}


def table(result: dict[str, Any]) -> str:
    lines = [
        "| model | alone, photos/s | with a shadow | shadowed / alone | lowest to highest "
        "| processor ms a photo: alone, shadowed |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for model, row in result.items():
        cpu = ", ".join(processor_cells(row["rounds"], SIDES))
        lines.append(f"| {model} | {ratio_cells(row['rounds'], *SIDES, digits=1)} | {cpu} |")
    return "\n".join(lines)
