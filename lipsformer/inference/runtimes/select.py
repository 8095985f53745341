"""Which file of a bundle runs here, and in which runtime."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from lipsformer.bundle.manifest import BundleFile, Manifest
from lipsformer.system.errors import InputError

from . import OnnxRuntime

if TYPE_CHECKING:
    from .tensorrt import TensorRtRuntime

__all__ = ["Chosen", "open_runtime"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chosen:
    """The file of a bundle that runs, the runtime that has it open, and why faster ones were passed over."""

    file: BundleFile
    runtime: OnnxRuntime | TensorRtRuntime
    fallbacks: tuple[str, ...]


def open_runtime(
    bundle: Path, manifest: Manifest, *, device: str, precision: str | None, threads: int | None
) -> Chosen:
    """Opens the fastest file of a precision that runs here: an engine, else the graph on CUDA, else on the CPU.

    Never chosen are graphs that engines are built from, which ONNX Runtime would run slowly, and engines that were not
    proved.

    Args:
        bundle: the folder.
        manifest: its manifest, read and so checked.
        device: "auto"; "cpu" for the graph on the CPU; "cuda" for an engine or the graph on CUDA.
        precision: by default the bundle's first.
        threads: CPU threads for one inference; by default all cores.

    Raises:
        InputError: if the bundle has no such precision, or `device` cannot be had.
    """
    graph = manifest.graph(precision)
    engines = manifest.engines(graph.precision or "") if device != "cpu" else ()
    fallbacks: list[str] = []
    for engine in engines:
        if not (engine.parity or {}).get("passed"):
            fallbacks.append(
                f"{bundle / engine.name}: never proved, as it could not run where it was exported; not used"
            )
            continue
        from .tensorrt import TensorRtRuntime

        try:
            runtime = TensorRtRuntime(bundle / engine.name, engine)
        except InputError as misfit:
            fallbacks.append(f"{misfit}. Until then ONNX Runtime runs {graph.name}")
        else:
            return Chosen(file=engine, runtime=runtime, fallbacks=tuple(fallbacks))
    session = OnnxRuntime(bundle / graph.name, device, threads)
    if session.fallback:
        fallbacks.append(session.fallback)
    return Chosen(file=graph, runtime=session, fallbacks=tuple(fallbacks))
