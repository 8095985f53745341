"""`lipsformer export`: builds the files, checks the parity of each, and writes the bundle whole or not at all."""

from __future__ import annotations

import dataclasses
import datetime
import functools
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from lipsformer.bundle.acceptance import ACCEPTANCE_NAME
from lipsformer.bundle.manifest import OPENVINO, BundleFile, Manifest
from lipsformer.bundle.reference import ReferenceHistograms
from lipsformer.checkpoints.certificate import certificate_of
from lipsformer.checkpoints.checkpoint import Checkpoint, load_checkpoint
from lipsformer.checkpoints.pretrained import resolve_model
from lipsformer.datasets.spread import spread
from lipsformer.evaluation.heat_maps.explainer import TorchExplainer
from lipsformer.export.int8.bound import bound_int8, has_bound
from lipsformer.export.int8.calibration import FEWEST
from lipsformer.export.int8.quantize import quantize
from lipsformer.export.parity.float16_range import check_float16_range
from lipsformer.export.parity.gate import Gate
from lipsformer.export.parity.gate_images import GateImages, ImageSource
from lipsformer.export.parity.reference import REFERENCE_NAME, Reference
from lipsformer.export.parity.report import ParityReport
from lipsformer.export.tensorrt.build import build_engine, check_with_rtx
from lipsformer.export.whole_image.gate import check_whole_image
from lipsformer.export.whole_image.graph import WHOLE_IMAGE_NAME, whole_image_graph
from lipsformer.images.preprocessing import Preprocessing
from lipsformer.images.samples import SAMPLES
from lipsformer.inference.heat_map import GraphExplainer
from lipsformer.inference.predictor import softmax
from lipsformer.inference.runtimes import GraphRuntime, OnnxRuntime, Pixels, TorchRuntime
from lipsformer.inference.runtimes.openvino import OpenVinoRuntime
from lipsformer.inference.runtimes.tensorrt import TensorRtRuntime
from lipsformer.inference.runtimes.tensorrt_compat import engine_fits
from lipsformer.inference.runtimes.tensorrt_library import RTX, TENSORRT
from lipsformer.system.atomic import atomic_directory, sha256_of
from lipsformer.system.console import say
from lipsformer.system.errors import GateError, InputError
from lipsformer.system.hardware import cache_folder, installed_versions

from .graph import build_graph, build_heat_map_graph
from .settings import PACKAGES, ExportSettings
from .speedup import measure_speedup

__all__ = ["cached_bundle", "export_bundle"]

CALIBRATION_IMAGES = 512
HEAT_MAPS_NAME = "heat-maps.onnx"


def export_bundle(checkpoint: Path, output: Path, settings: ExportSettings | None = None) -> Manifest:
    """Export a checkpoint to the folder `output`: a graph for each precision, the parity report, and the manifest.

    Args:
        checkpoint: a .safetensors checkpoint, or the name of a trained model that the package includes.
        output: the bundle's folder; it must not exist.
        settings: what to export, and how to check it.

    Returns:
        The manifest that was written.

    Raises:
        InputError: if the checkpoint or the images cannot be used, or `output` exists.
        GateError: if a file fails the parity check; then `output` is not written.
    """
    settings = settings or ExportSettings()
    settings.check_libraries()
    with atomic_directory(output) as draft:
        checkpoint = resolve_model(checkpoint)
        loaded = load_checkpoint(checkpoint)
        certificate = certificate_of(loaded)
        # int8 then rounds in smaller steps, so that a bound of what it changes leaves certificates
        certifies = certificate is not None and settings.fold and has_bound(loaded.config)
        images, calibration = _read_images(loaded, settings)
        gate = Gate(Reference.of(TorchRuntime(loaded), images), settings)
        for target, precision, graph in _graphs(loaded, settings, images, calibration, fine=certifies):
            path = draft / f"{target}-{precision}.onnx"
            onnx.save(graph, path)
            if settings.trt_check and path == _source_of_engine(draft, precision):
                check_with_rtx(path, settings.max_batch)
            runtime = _open(OnnxRuntime, path, device="cpu")
            bound = None
            if certificate is not None and certifies and (target, precision) == ("ort", "int8"):
                bound = bound_int8(loaded, certificate, graph, runtime, gate.reference)
                say(
                    f"{path.name}: the class of {bound.unchanged:.1%} of {bound.photos} photos cannot change; it moves "
                    f"features by {bound.bound:.3g} (median of the bound), measured {bound.measured:.3g}; rounding "
                    f"alone by at most {bound.rounding:.3g}, for every image"
                )
            gate.admit(path, runtime, target=target, precision=precision, bound=bound)
            if precision == "fp32" and "bf16" in settings.precisions:
                in_bf16 = _open(OpenVinoRuntime, path)
                speedup = measure_speedup(in_bf16, runtime, images.photos, sorted({1, settings.max_batch}))
                gate.admit(path, in_bf16, target=OPENVINO, precision="bf16", speedup=speedup)
        if settings.explain:
            path = draft / HEAT_MAPS_NAME
            onnx.save(build_heat_map_graph(loaded), path)
            gate.admit_heat_maps(path, GraphExplainer(path), TorchExplainer(TorchRuntime(loaded)))
        for flavour in settings.flavours:
            for precision in settings.graphs:
                _add_engine(gate, draft, flavour, precision)
        reports = ParityReport(reference=gate.reference, files=gate.checked).write(draft)
        gate.kept().save(draft / REFERENCE_NAME)
        files = gate.files + [BundleFile.describe(path, "report") for path in (*reports, draft / REFERENCE_NAME)]
        if settings.whole_image:
            files.append(_whole_image(draft, loaded.preprocessing, settings))
        if loaded.acceptance is not None:
            (draft / ACCEPTANCE_NAME).write_bytes(loaded.acceptance.to_bytes())
            files.append(BundleFile.describe(draft / ACCEPTANCE_NAME, "acceptance"))
        manifest = Manifest(
            model=loaded.config.to_dict(),
            classes=loaded.classes,
            preprocessing=loaded.preprocessing,
            max_batch=settings.max_batch,
            files=tuple(files),
            checkpoint_sha256=sha256_of(checkpoint),
            metrics=loaded.metrics,
            temperature=loaded.temperature,
            reference=_reference(loaded, gate.reference, settings),
            certificate=certificate,
            versions=installed_versions(PACKAGES),
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        )
        manifest.write(draft)
    return manifest


def cached_bundle(checkpoint: Path) -> Path:
    """The bundle of a checkpoint in the cache folder, exported first if this version has not done so before.

    Raises:
        InputError: if the checkpoint cannot be used.
        GateError: if its graph fails the parity check.
    """
    version = metadata.version("lipsformer")
    bundle = cache_folder() / "bundles" / f"{checkpoint.stem}-{version}-{sha256_of(checkpoint)[:16]}"
    if not bundle.is_dir():
        say(f"exporting {checkpoint.name} to {bundle}")
        try:
            export_bundle(checkpoint, bundle)
        except InputError:
            if not bundle.is_dir():  # otherwise another process was faster
                raise
    return bundle


def _read_images(loaded: Checkpoint, settings: ExportSettings) -> tuple[GateImages, Pixels]:
    """The images of the gate, and those to calibrate int8 on, if any; disjoint if there are enough."""
    spec, classes = loaded.preprocessing, loaded.classes
    calibration = np.empty((0, spec.image_size, spec.image_size, 3), np.uint8)
    calibrated, used = None, None
    if settings.calibration is not None:
        source = ImageSource.find(settings.calibration, classes, "train", settings.dataset_options)
        source.images.left_out.report(settings.calibration)
        count = len(source.images)
        calibrated, used = source.name, spread(min(CALIBRATION_IMAGES, max(FEWEST, count // 2)), count)
        calibration, _ = source.decode(used, spec)
        if len(calibration) < FEWEST:
            raise InputError(f"--calibration {source.name}: {len(calibration)} photos; give at least {FEWEST}")
    data = settings.parity_data or settings.calibration
    if data is None:
        source = dataclasses.replace(ImageSource.find(SAMPLES, ()), name="sample photos of the package")
    else:
        source = ImageSource.find(data, classes, options=settings.dataset_options)
        if settings.parity_data is not None:
            source.images.left_out.report(data)
    return source.gate_images(settings.parity_images, spec, used if source.name == calibrated else None), calibration


def _graphs(
    loaded: Checkpoint, settings: ExportSettings, images: GateImages, calibration: Pixels, *, fine: bool
) -> Iterator[tuple[str, str, onnx.ModelProto]]:
    """Each graph with its target and precision, in the order of the manifest.

    TensorRT builds float engines from the graphs that ONNX Runtime runs; for int8 it needs another kind. With `fine`,
    ONNX Runtime's int8 rounds activations in two parts.

    Raises:
        GateError: if a value of the network is beyond float16's range, and fp16 is requested.
    """

    @functools.cache
    def floating(precision: str) -> onnx.ModelProto:
        return build_graph(loaded, max_batch=settings.max_batch, precision=precision, fold=settings.fold)

    for precision in settings.graphs:
        if precision == "int8":
            for target in settings.targets:
                smaller = fine and target == "ort"
                yield target, precision, quantize(floating("fp32"), calibration, target=target, fine=smaller)
        else:
            graph = floating(precision)
            if precision == "fp16":
                check_float16_range(graph, floating("fp32"), images, "ort-fp16.onnx")
            yield "ort", precision, graph


def _whole_image(draft: Path, preprocessing: Preprocessing, settings: ExportSettings) -> BundleFile:
    """Write the whole-image graph of the first precision, and check it.

    Raises:
        GateError: if its answers are not those of the graph behind it.
    """
    precision = settings.graphs[0]
    path, whole = draft / f"ort-{precision}.onnx", draft / WHOLE_IMAGE_NAME
    onnx.save(whole_image_graph(onnx.load(path), preprocessing), whole)
    found = check_whole_image(whole, path, preprocessing, settings.thresholds[precision]["order"])
    if found.failure is not None:
        raise GateError(f"{whole.name}: no bundle written: {found.failure}")
    say(f"{whole.name}: the answers of {path.name} for images of {found.images} sizes")
    return BundleFile.describe(whole, "whole-image", target="ort", precision=precision, parity=found.summary())


def _reference(loaded: Checkpoint, parity: Reference, settings: ExportSettings) -> ReferenceHistograms | None:
    """The histograms of the calibration, or else of the answers to --parity-data; sample photos represent nothing."""
    if loaded.reference is not None or settings.parity_data is None:
        return loaded.reference
    logits, features = parity.photos
    space = loaded.space if features is not None else None
    return ReferenceHistograms.of(
        logits.argmax(axis=1),
        softmax(logits).max(axis=1),
        None if space is None or features is None else space.distances(features),
        len(loaded.classes),
    )


def _source_of_engine(folder: Path, precision: str) -> Path:
    """The graph that TensorRT builds engines from."""
    return folder / f"{TENSORRT if precision == 'int8' else 'ort'}-{precision}.onnx"


def _open(kind: Callable[..., GraphRuntime], graph: Path, **options: Any) -> GraphRuntime:
    try:
        return kind(graph, **options)
    except InputError as error:  # we wrote it
        raise GateError(f"{graph.name}: no bundle written: {error}") from None


def _add_engine(gate: Gate, draft: Path, flavour: str, precision: str) -> None:
    """Build an engine, and check its parity if it can run here."""
    settings = gate.settings
    path = draft / f"{flavour}-{precision}.engine"
    built = build_engine(
        _source_of_engine(draft, precision),
        path,
        max_batch=settings.max_batch,
        flavour=flavour,
        workspace=settings.workspace,
        hardware_compatibility=settings.hardware_compatibility and flavour == TENSORRT,
    )
    misfit = engine_fits(built)
    if misfit is None:
        file = BundleFile.describe(path, "engine", target=flavour, precision=precision, parity={}, built=built)
        gate.admit(path, TensorRtRuntime(path, file), target=flavour, precision=precision, built=built)
    elif flavour == RTX:
        gate.admit_unchecked(path, target=flavour, precision=precision, built=built, reason=misfit)
    else:
        raise InputError(f"{path.name}: {misfit}")
