"""The arguments and options that several commands share, and what becomes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["Data", "Device", "Json", "Model", "Precision", "Quiet", "optional_dataset", "print_json"]

Model = Annotated[
    str,
    typer.Argument(help="Checkpoint (.safetensors), .onnx file, bundle folder, or lipsformer_cifar10, which we ship."),
]
Data = Annotated[
    str,
    typer.Argument(metavar="DATA", help="Folder of class folders or tar shards, URL of shards, or built-in dataset."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else there.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print errors and the final line only.")]
Precision = Annotated[
    str | None, typer.Option(help="Which of a bundle's precisions to run; by default its first.", show_default=False)
]


def optional_dataset(name: str | None) -> Path | None:
    """The folder of a dataset, where one is named."""
    from lipsformer.datasets.builtin import resolve_dataset

    return None if name is None else resolve_dataset(name)


def print_json(value: Any) -> None:
    """Prints a command's answer to `--json`."""
    typer.echo(json.dumps(value, indent=2))
