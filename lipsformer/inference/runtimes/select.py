"""Selection of the fastest file of a bundle that runs on this machine."""

from __future__ import annotations

from pathlib import Path

from lipsformer.bundle.manifest import OPENVINO, BundleFile, Manifest
from lipsformer.system.errors import InputError
from lipsformer.system.hardware import bf16_instructions

from . import CUDA, GraphRuntime, OnnxRuntime, RuntimeOptions, import_onnxruntime

__all__ = ["open_best"]


def open_best(
    bundle: Path, manifest: Manifest, options: RuntimeOptions
) -> tuple[BundleFile, GraphRuntime, tuple[str, ...]]:
    """Open the fastest file that runs here: an engine, else the graph on CUDA, else the graph on the CPU.

    The graph is that of the first precision that the bundle was exported with, unless `options` name another. If the
    first is fp32 and would run on the CPU, bf16 takes its place where that passed the parity check, this CPU has
    instructions for it, and it was faster where it was exported, with the same instructions.

    Engines that did not pass the parity check are never used, nor are the graphs that engines are built from, which
    ONNX Runtime would run slowly.

    Args:
        bundle: the folder.
        manifest: its manifest, read and so checked.
        options: device "cpu" means the graph on the CPU, "cuda" an engine or the graph on CUDA.

    Returns:
        The file, its runtime, and why each faster choice was passed over.

    Raises:
        InputError: if the bundle does not have the precision, or the device is not available.
    """
    graph = manifest.graph(options.precision)
    if graph.target == OPENVINO:
        return graph, _open_bf16(bundle, graph, options), ()
    fallbacks: list[str] = []
    if options.device != "cpu":
        for engine in manifest.engines(graph.precision or ""):
            try:
                return engine, _open_engine(bundle, engine), tuple(fallbacks)
            except InputError as misfit:
                fallbacks.append(f"{misfit}. Until then ONNX Runtime runs {graph.name}")
    session = None
    if options.device != "cpu" and CUDA in import_onnxruntime().get_available_providers():
        session = OnnxRuntime(bundle / graph.name, options.device, options.threads)
        fallbacks += session.fallbacks
    bf16 = manifest.bf16 if options.precision is None and graph.precision == "fp32" else None
    if bf16 is not None and options.device != "cuda" and (session is None or session.provider != CUDA):
        try:
            _check_faster(bf16)
            return bf16, _open_bf16(bundle, bf16, options), tuple(fallbacks)
        except InputError as misfit:
            fallbacks.append(f"{misfit}. ONNX Runtime runs {graph.name} in fp32 instead")
    return graph, session or OnnxRuntime(bundle / graph.name, options.device, options.threads), tuple(fallbacks)


def _open_engine(bundle: Path, engine: BundleFile) -> GraphRuntime:
    if not (engine.parity or {}).get("passed"):
        raise InputError(
            f"{bundle / engine.name}: never passed the parity check, because it could not run where it was exported"
        )
    from .tensorrt import TensorRtRuntime

    return TensorRtRuntime(bundle / engine.name, engine)


def _open_bf16(bundle: Path, file: BundleFile, options: RuntimeOptions) -> GraphRuntime:
    if options.device == "cuda":
        raise InputError("--device cuda: bf16 runs on the CPU; omit one of --device cuda and --precision bf16")
    from .openvino import OpenVinoRuntime

    return OpenVinoRuntime(bundle / file.name, options.threads)


def _check_faster(file: BundleFile) -> None:
    """Check that there is reason to expect bf16 to be correct and faster here.

    Raises:
        InputError: if it did not pass the parity check, or was measured slower or with other instructions.
    """
    speedup, here = file.speedup or {}, bf16_instructions()
    if not (file.parity or {}).get("passed"):
        raise InputError("bf16 never passed the parity check")
    if here is not None and here != speedup["instructions"]:
        raise InputError(f"bf16 was measured with {speedup['instructions']}, and this CPU has {here}; export it here")
    if min(speedup["ratios"].values()) <= 1:
        raise InputError(f"bf16 was not faster than fp32 when it was exported on {speedup['cpu']}")
