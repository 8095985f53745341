"""Which file of a bundle runs here, and in which runtime."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .console import say
from .errors import InputError
from .manifest import BundleFile, Manifest
from .runtimes import OnnxRuntime

if TYPE_CHECKING:
    from .runtimes.trt import TensorRtRuntime

__all__ = ["open_runtime"]


def open_runtime(
    bundle: Path, manifest: Manifest, *, device: str, precision: str | None, threads: int | None
) -> tuple[BundleFile, OnnxRuntime | TensorRtRuntime]:
    """Opens the fastest file of a precision that runs here: an engine, else the graph on CUDA, else on the CPU.

    Never chosen are graphs that engines are built from, which ONNX Runtime would run slowly, and engines that were not
    proved.

    Args:
        bundle: the folder.
        manifest: its manifest, read and so checked.
        device: "auto"; "cpu" for the graph on the CPU; "cuda" for an engine or the graph on CUDA. Wherever an engine of
            the precision is passed over, stderr tells why.
        precision: by default the bundle's first.
        threads: CPU threads for one inference; by default all cores.

    Raises:
        InputError: if the bundle has no such precision, or `device` cannot be had.
    """
    graph = manifest.graph(precision)
    engines = manifest.engines(graph.precision or "") if device != "cpu" else ()
    for engine in engines:
        if not (engine.parity or {}).get("passed"):
            say(f"{bundle / engine.name}: never proved, as it could not run where it was exported; not used")
            continue
        from .runtimes.trt import TensorRtRuntime

        try:
            return engine, TensorRtRuntime(bundle / engine.name, engine)
        except InputError as misfit:
            say(f"{misfit}. Until then ONNX Runtime runs {graph.name}")
    return graph, OnnxRuntime(bundle / graph.name, device, threads)
