"""Selection of the fastest file of a bundle that runs on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lipsformer.bundle.manifest import BundleFile, Manifest
from lipsformer.system.errors import InputError

from . import OnnxRuntime, RuntimeOptions

if TYPE_CHECKING:
    from .tensorrt import TensorRtRuntime

__all__ = ["open_best"]


def open_best(
    bundle: Path, manifest: Manifest, options: RuntimeOptions
) -> tuple[BundleFile, OnnxRuntime | TensorRtRuntime, tuple[str, ...]]:
    """Open the fastest file that runs here: an engine, else the graph on CUDA, else the graph on the CPU.

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
    engines = manifest.engines(graph.precision or "") if options.device != "cpu" else ()
    fallbacks: list[str] = []
    for engine in engines:
        if not (engine.parity or {}).get("passed"):
            fallbacks.append(
                f"{bundle / engine.name}: not used, because it never passed the parity check: "
                "it could not run where it was exported"
            )
            continue
        from .tensorrt import TensorRtRuntime

        try:
            runtime = TensorRtRuntime(bundle / engine.name, engine)
        except InputError as misfit:
            fallbacks.append(f"{misfit}. Until then ONNX Runtime runs {graph.name}")
        else:
            return engine, runtime, tuple(fallbacks)
    session = OnnxRuntime(bundle / graph.name, options.device, options.threads)
    return graph, session, (*fallbacks, *session.fallbacks)
