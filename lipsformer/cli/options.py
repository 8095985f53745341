"""Arguments and options that several commands share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["Data", "Device", "Json", "Model", "Precision", "optional_dataset", "print_json"]

Model = Annotated[
    str,
    typer.Argument(help="Checkpoint (.safetensors), .onnx file, bundle folder, or the packaged lipsformer_cifar10."),
]
Data = Annotated[
    str,
    typer.Argument(metavar="DATA", help="Folder of class folders or tar shards, URL of shards, or built-in dataset."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, and nothing else there.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda; auto uses CUDA if available.")]
Precision = Annotated[
    str | None, typer.Option(help="Precision to run, of those in the bundle; by default its first.", show_default=False)
]


def optional_dataset(name: str | None) -> Path | None:
    """Resolves the dataset of an option that may be omitted."""
    from lipsformer.datasets import resolve_dataset

    return None if name is None else resolve_dataset(name)


def print_json(value: Any) -> None:
    """Prints the output of `--json`."""
    typer.echo(json.dumps(value, indent=2))
