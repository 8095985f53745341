"""Arguments and options that several commands share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = [
    "Bundle",
    "Classes",
    "ClassesFrom",
    "Column",
    "Data",
    "Device",
    "Fold",
    "Group",
    "ImageRoot",
    "Json",
    "Model",
    "Precision",
    "Quiet",
    "bundle_of",
    "optional_dataset",
    "print_json",
]


def _be_quiet(context: typer.Context, wanted: bool) -> None:
    from lipsformer.system.console import quiet

    if wanted:
        context.with_resource(quiet())  # until the command has ended


Model = Annotated[
    str,
    typer.Argument(
        help="Checkpoint (.safetensors), .onnx file, bundle folder, hf:OWNER/NAME, or a name from `lipsformer models`."
    ),
]
Bundle = Annotated[
    str,
    typer.Argument(
        help="Bundle folder; or a checkpoint or trained model (see `lipsformer models`), which is exported first."
    ),
]
Data = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="Folder of class folders or tar shards, table (CSV, JSON lines, Parquet), URL, or built-in dataset.",
    ),
]
ClassesFrom = Annotated[
    str | None,
    typer.Option(
        metavar="FOLDER",
        help="Folder in DATA whose sub-folders are all classes, none of them a split; . is DATA itself.",
    ),
]
Column = Annotated[
    list[str] | None,
    typer.Option(metavar="ROLE=NAME", help="Column of the table with the path, label or split. Repeatable."),
]
ImageRoot = Annotated[
    Path | None, typer.Option(help="Folder that the table's paths are relative to. Default: the table's.")
]
Classes = Annotated[
    Path | None, typer.Option(help="File of class names, one per line, if the table's labels are numbers.")
]
Group = Annotated[
    str | None,
    typer.Option(
        metavar="COLUMN|REGEX",
        help="Hold out whole groups: by a column of the table, or what the first parentheses match in image names.",
    ),
]
Fold = Annotated[
    str | None, typer.Option(metavar="K/N", help="Validate on fold K of N of the training images. Stratified.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, and nothing else there.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda; auto uses CUDA if available.")]
Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet", "-q", callback=_be_quiet, expose_value=False, help="Show no progress, only warnings and the result."
    ),
]
Precision = Annotated[
    str | None, typer.Option(help="Precision to run, of those in the bundle; by default its first.", show_default=False)
]


def bundle_of(model: str) -> Path:
    """The folder of a bundle, or the name of one in BentoML's store; a checkpoint is exported first."""
    from lipsformer.checkpoints.pretrained import resolve_model

    path = resolve_model(model)
    if path.suffix != ".safetensors":
        return path
    from lipsformer.export import cached_bundle

    return cached_bundle(path)


def optional_dataset(name: str | None) -> Path | None:
    """Resolves the dataset of an option that may be omitted."""
    from lipsformer.datasets import resolve_dataset

    return None if name is None else resolve_dataset(name)


def print_json(value: Any) -> None:
    """Prints the output of `--json`."""
    typer.echo(json.dumps(value, indent=2))
