"""`lipsformer predict`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from lipsformer.system.errors import InputError, LipsFormerError

from .options import Device, Json, Model, Precision, Quiet, print_json

if TYPE_CHECKING:
    from lipsformer.inference.classification import Classification
    from lipsformer.inference.predictor import Predictor

__all__ = ["predict"]


def predict(
    model: Model,
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SOURCE",
            help="Image files, folders, patterns, .tar shards, Parquet files, URLs, or - for names on stdin.",
            show_default=False,
        ),
    ] = None,
    top_k: Annotated[int, typer.Option(help="Classes to show for each image.")] = 5,
    output: Annotated[
        str | None,
        typer.Option(
            metavar="OUT",
            help="Write a row for each image into a .parquet, .jsonl or .csv file, or a folder of Parquet files, here "
            "or in an object store (s3://, gs://, az://). The same command resumes.",
        ),
    ] = None,
    features: Annotated[bool, typer.Option("--features", help="Add the pooled features to each row.")] = False,
    part: Annotated[
        str | None, typer.Option(metavar="K/N", help="Predict only the K-th of N parts, into OUT.part-K-of-N.")
    ] = None,
    merge: Annotated[
        str | None,
        typer.Option(metavar="OUT", help="Merge parts into OUT: `lipsformer predict --merge OUT OUT.part-*`."),
    ] = None,
    max_failures: Annotated[
        int | None, typer.Option(help="Stop if more images than this are rejected.", show_default=False)
    ] = None,
    copy_to: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Link or copy each image into a folder of its class in DIR.")
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder of the state that resumes; by default that of OUT, or this one if OUT is in an object store.",
            show_default=False,
        ),
    ] = None,
    column: Annotated[
        str | None, typer.Option(metavar="NAME", help="Column of Parquet files with paths or encoded images.")
    ] = None,
    engine: Annotated[
        Literal["local", "ray"], typer.Option(help="Compute on this machine, or on every node of a Ray cluster.")
    ] = "local",
    address: Annotated[
        str | None, typer.Option(help="Ray cluster, as in `ray.init`; without it, Ray starts here.", show_default=False)
    ] = None,
    device: Device = "auto",
    precision: Precision = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Classify images. Those that cannot be read are named on stderr, and the exit status is 1.

    With --output they are rows too, and the exit status is 0.
    """
    if merge is not None:
        from lipsformer.inference.bulk.parts import merge_parts

        merge_parts(merge, [model, *(sources or ())], state)
        return
    if not sources:
        raise InputError("no SOURCE given; name images, folders, .tar shards or Parquet files, or - for stdin")
    of_rows = {"part": part, "features": features or None, "max-failures": max_failures, "copy-to": copy_to}
    of_rows |= {"engine": engine if engine != "local" else None, "address": address, "state": state}
    if output is None and (given := [name for name, value in of_rows.items() if value is not None]):
        raise InputError(f"--{given[0]}: only with --output OUT")
    if output is not None and as_json:
        raise InputError("--json: not with --output; let OUT end in .jsonl")
    from lipsformer.inference.predictor import load_predictor

    if output is None:
        _print_answers(load_predictor(model, device, precision), sources, column, top_k, as_json=as_json)
        return
    from lipsformer.inference.bulk import BulkOptions, Part, predict_to_file

    options = BulkOptions(
        model=model,
        sources=tuple(sources),
        column=column,
        top_k=top_k,
        features=features,
        part=Part() if part is None else Part.parse(part),
        max_failures=max_failures,
        copy_to=copy_to,
        state=state,
    )
    predictor = load_predictor(model, device, precision)
    if engine == "local":
        if address is not None:
            raise InputError("--address: only with --engine ray")
        predict_to_file(predictor, options, output)
        return
    from lipsformer.inference.bulk.ray_workers import RayWorkers, WorkerOptions
    from lipsformer.inference.bulk.settings import identity

    load, expected = WorkerOptions(device=device, precision=precision), identity(predictor, options)
    predict_to_file(predictor, options, output, lambda: RayWorkers(options, load, expected, address))


def _print_answers(
    predictor: Predictor, sources: Sequence[str], column: str | None, top_k: int, *, as_json: bool
) -> None:
    """Prints each answer as soon as it is there."""
    from lipsformer.system.console import printable, say

    entries, rejected, total = [], list[InputError](), 0

    def say_why() -> None:
        if rejected:
            say(printable(" ".join(str(rejected[-1]).split())), always=True)

    try:
        for name, answer in predictor.stream(sources, top_k, column=column):
            total += 1
            if total == 2:
                say_why()
            if as_json:
                entries.append(_entry(name, answer))
            elif not isinstance(answer, InputError):
                _show(name, answer)
            if isinstance(answer, InputError):
                rejected.append(answer)
                if total > 1:  # a single image's line is the last
                    say_why()
    finally:
        if entries:
            print_json(entries)
    if rejected and total == 1:
        raise rejected[0]
    if rejected and len(rejected) == total:
        raise InputError(f"none of the {total:,} images can be classified; the lines above say why")
    if rejected:
        raise LipsFormerError(f"{len(rejected):,} of {total:,} images cannot be classified; the lines above say why")


def _entry(name: str, answer: Classification | InputError) -> dict[str, Any]:
    if isinstance(answer, InputError):
        return {"image": name, "problem": str(answer)}
    return {"image": name, **answer.to_dict()}


def _show(name: str, answer: Classification) -> None:
    from lipsformer.system.console import printable

    lines = [f"  {prediction.score:7.2%}  {printable(prediction.label)}" for prediction in answer.predictions]
    doubt = {
        None: "",
        "low_score": "  not sure: the best score is too low",
        "unfamiliar": "  not sure: unlike the training photos",
    }
    radius = answer.certified_radius
    if radius is not None:
        lines.append(f"  certified radius {math.floor(radius * 1e4) / 1e4:.4f}" if radius else "  no certified radius")
    typer.echo("\n".join([printable(name) + doubt[answer.reason], *lines]))
