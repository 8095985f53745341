"""`lipsformer export`: builds the graph, puts it through the gate, and publishes the bundle whole or not at all."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import numpy as np
import onnx

from lipsformer.checkpoint import Checkpoint, load_checkpoint
from lipsformer.console import say
from lipsformer.datasets import find_images
from lipsformer.errors import GateError, InputError
from lipsformer.images import open_image
from lipsformer.machine import cache_folder
from lipsformer.manifest import BundleFile, Manifest
from lipsformer.outputs import publish_directory, sha256_of
from lipsformer.preprocessing import Preprocessing
from lipsformer.pretrained import resolve_model
from lipsformer.runtimes import OnnxRuntime, Pixels, TorchRuntime
from lipsformer.samples import SAMPLES

from .graph import build_graph
from .parity import ParityReport, check_parity, one_at_a_time

__all__ = ["cached_bundle", "export_bundle"]

PARITY_IMAGES = 64


def export_bundle(
    checkpoint: Path,
    output: Path,
    *,
    parity_data: Path | None = None,
    max_batch: int = 16,
    build: Callable[[Checkpoint, int], onnx.ModelProto] = build_graph,
) -> Manifest:
    """Exports a checkpoint to the folder `output`: ONNX graph, parity report and manifest.

    Args:
        checkpoint: a .safetensors checkpoint, or the name of a trained model that comes with the package.
        output: the bundle's folder; it must not exist.
        parity_data: a folder of images for the gate; by default the sample photos that the package ships.
        max_batch: the largest batch that is proved and will be served.
        build: makes the graph of the checkpoint, for batches up to the given one.

    Returns:
        The manifest that was written.

    Raises:
        InputError: if the checkpoint or the images cannot be used, or `output` exists.
        GateError: if the graph does not answer as the checkpoint does; `output` is not written.
    """
    if max_batch < 1:
        raise InputError(f"--max-batch {max_batch}: at least 1 is needed")
    checkpoint = resolve_model(checkpoint)
    loaded = load_checkpoint(checkpoint)
    pixels = _parity_pixels(parity_data or SAMPLES, loaded.preprocessing, max_batch)
    with publish_directory(output) as draft:
        graph_path = draft / "ort-fp32.onnx"
        onnx.save(build(loaded, max_batch), graph_path)
        report = check_parity(
            OnnxRuntime(graph_path, device="cpu"),
            one_at_a_time(TorchRuntime(loaded), pixels),
            pixels,
            batches=sorted({1, 3, max_batch}),
            source="sample photos of the package" if parity_data is None else str(parity_data),
        )
        if report.failures:
            raise GateError(f"{checkpoint}: parity failed, no bundle written: {'; '.join(report.failures)}")
        _write_report(report, draft)
        manifest = Manifest(
            model=loaded.config.to_dict(),
            classes=loaded.classes,
            preprocessing=loaded.preprocessing,
            max_batch=max_batch,
            files=(
                BundleFile.describe(graph_path, "onnx", target="ort", precision="fp32", parity=report.to_dict()),
                BundleFile.describe(draft / "parity.json", "report"),
                BundleFile.describe(draft / "parity.md", "report"),
            ),
            checkpoint_sha256=sha256_of(checkpoint),
            metrics=loaded.metrics,
            versions={name: metadata.version(name) for name in ("lipsformer", "onnx", "torch")},
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        )
        manifest.write(draft)
    return manifest


def cached_bundle(checkpoint: Path) -> Path:
    """The bundle of a checkpoint in the cache folder, exported now if this version has not done so before.

    Raises:
        InputError: if the checkpoint cannot be used.
        GateError: if its graph does not answer as it does.
    """
    version = metadata.version("lipsformer")
    bundle = cache_folder() / "bundles" / f"{checkpoint.stem}-{version}-{sha256_of(checkpoint)[:16]}"
    if not bundle.is_dir():
        say(f"exporting {checkpoint.name} to {bundle}")
        try:
            export_bundle(checkpoint, bundle)
        except InputError:
            if not bundle.is_dir():  # else another process was faster
                raise
    return bundle


def _parity_pixels(folder: Path, preprocessing: Preprocessing, max_batch: int) -> Pixels:
    """Network input (N, S, S, 3) of up to 64 images spread evenly over the folder, and their mirror images."""
    paths = find_images(folder)
    if not paths:
        raise InputError(f"{folder}: holds no images for the parity gate; give a folder of real photos")
    step = max(1, len(paths) // PARITY_IMAGES)
    plain = np.stack([preprocessing.apply(open_image(path)) for path in paths[::step][:PARITY_IMAGES]])
    both = np.concatenate([plain, plain[:, :, ::-1]])
    return both[np.arange(max(len(both), max_batch)) % len(both)]


def _write_report(report: ParityReport, folder: Path) -> None:
    (folder / "parity.json").write_text(json.dumps(report.to_dict(), indent=2) + "\n", encoding="utf-8")
    (folder / "parity.md").write_text(report.to_text() + "\n", encoding="utf-8")
