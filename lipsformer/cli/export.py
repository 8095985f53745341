"""`lipsformer export`."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from .options import Classes, Column, ImageRoot, Json, Quiet, optional_dataset, print_json

__all__ = ["export"]


def export(
    checkpoint: Annotated[
        Path, typer.Argument(help="Checkpoint (.safetensors) to export, or a trained model (see `lipsformer models`).")
    ],
    output: Annotated[
        Path | None, typer.Option(help="Bundle folder to write; it must not exist. Needed unless --web is given.")
    ] = None,
    precision: Annotated[
        str, typer.Option(help="Any of fp32, fp16, bf16 and int8, comma-separated; the first is the default.")
    ] = "fp32",
    calibration: Annotated[
        str | None, typer.Option(help="Photos for int8 calibration: folder, shards or built-in dataset.")
    ] = None,
    parity_data: Annotated[
        str | None,
        typer.Option(help="Photos for the parity gate; by default --calibration's, else the package's samples."),
    ] = None,
    parity_images: Annotated[int, typer.Option(help="How many of them, evenly spread.")] = 256,
    threshold: Annotated[
        list[str] | None,
        typer.Option(metavar="PRECISION.METRIC=NUMBER", help="Change a limit of the parity gate; repeatable."),
    ] = None,
    trt: Annotated[bool, typer.Option("--trt", help="Build TensorRT engines for this machine's GPU.")] = False,
    trt_rtx: Annotated[
        bool, typer.Option("--trt-rtx", help="Build engines for TensorRT for RTX; checked only if a GPU can run them.")
    ] = False,
    trt_check: Annotated[
        bool, typer.Option("--trt-check", help="Have TensorRT for RTX build every graph; needs no GPU.")
    ] = False,
    workspace: Annotated[
        int | None, typer.Option(help="MiB of GPU memory for a layer of an engine; no limit by default.")
    ] = None,
    hardware_compatibility: Annotated[
        bool,
        typer.Option("--hardware-compatibility", help="Engines for every GPU from Ampere on; slower."),
    ] = False,
    fold: Annotated[bool, typer.Option(help="Fold scales, norms and biases into the weights.")] = True,
    max_batch: Annotated[int, typer.Option(help="Largest batch to check and serve.")] = 16,
    whole_image: Annotated[
        bool,
        typer.Option("--whole-image", help="Also write a graph with the resize inside: images of any size in."),
    ] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Add a graph of heat maps, for `explain` and the server.")
    ] = False,
    web: Annotated[
        Path | None,
        typer.Option(help="Also write a page that classifies photos in the browser, for any web server; a new folder."),
    ] = None,
    web_runtime: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="onnxruntime-web for --web: npm's .tgz, or its folder; by default downloaded."
        ),
    ] = None,
    triton: Annotated[
        Path | None, typer.Option(help="Also write a model repository for NVIDIA Triton; it must not exist.")
    ] = None,
    bentoml: Annotated[
        str | None, typer.Option(metavar="NAME[:VERSION]", help="Also add the bundle to BentoML's model store.")
    ] = None,
    column: Column = None,
    image_root: ImageRoot = None,
    classes: Classes = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Export a checkpoint to a bundle; fails unless the outputs of every file match the checkpoint."""
    from lipsformer.datasets import DatasetOptions, check_output
    from lipsformer.export import ExportSettings, export_bundle, read_runtime, read_thresholds, write_triton, write_web
    from lipsformer.system.atomic import atomic_directory
    from lipsformer.system.console import say
    from lipsformer.system.errors import InputError

    if output is None and web is None:
        raise InputError("--output BUNDLE is missing: the folder to write")
    if web is None and web_runtime is not None:
        raise InputError("--web-runtime is for --web; add it, or omit --web-runtime")
    settings = ExportSettings(
        precisions=tuple(name.strip() for name in precision.split(",")),
        calibration=optional_dataset(calibration),
        parity_data=optional_dataset(parity_data),
        parity_images=parity_images,
        thresholds=read_thresholds(threshold or ()),
        trt=trt,
        trt_rtx=trt_rtx,
        trt_check=trt_check,
        workspace=None if workspace is None else workspace * 2**20,
        hardware_compatibility=hardware_compatibility,
        fold=fold,
        max_batch=max_batch,
        whole_image=whole_image or web is not None,
        explain=explain,
        dataset_options=DatasetOptions(
            columns=DatasetOptions.parse_columns(column or ()), image_root=image_root, classes=classes
        ),
    )
    for folder in (output, triton, web):
        check_output(folder, settings.calibration, settings.parity_data)
    if bentoml is not None:
        from lipsformer.bundle.store import check_tag, register_bundle

        check_tag(bentoml)
    with contextlib.ExitStack() as stack:
        repository = None if triton is None else stack.enter_context(atomic_directory(triton))
        page = None if web is None else stack.enter_context(atomic_directory(web))
        runtime = {} if web is None else read_runtime(web_runtime)
        bundle = output or Path(stack.enter_context(tempfile.TemporaryDirectory()), "bundle")
        manifest = export_bundle(checkpoint, bundle, settings)
        report = (bundle / "parity.md").read_text(encoding="utf-8")
        if repository is not None:
            say(f"{triton}: a model repository for Triton with {', '.join(write_triton(bundle, repository))}")
        size = 0 if page is None else write_web(bundle, page, runtime)
        if bentoml is not None:
            say(f"in BentoML's model store: `lipsformer serve bentoml:{register_bundle(bundle, bentoml)}`")
    if as_json:
        print_json(dataclasses.asdict(manifest))
        return
    typer.echo(report)
    if output is not None:
        typer.echo(f"Bundle: {output}")
    if web is not None:
        typer.echo(f"Page: {web}, {size / 1e6:.1f} MB; try it with `python -m http.server --directory {web}`")
