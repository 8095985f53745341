"""TensorRT engines from exported graphs, and the check of a graph by TensorRT for RTX, which needs no GPU.

Both run in a separate process: TensorRT often crashes on a graph that it does not like. The crash then costs only the
engine, and a build gives all its memory back.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto

from lipsformer.inference.runtimes.tensorrt_library import FLAVOURS, RTX, TENSORRT
from lipsformer.system.console import say
from lipsformer.system.errors import GateError, InputError, LipsFormerError
from lipsformer.system.subprocesses import ProcessDiedError, Subprocess

from .build_process import EngineBuild, EngineRequest

__all__ = ["build_engine", "check_with_rtx"]

WITHOUT = "omit --trt, --trt-rtx and --trt-check to export for ONNX Runtime only"


def build_engine(
    graph: Path,
    output: Path,
    *,
    max_batch: int,
    flavour: str = TENSORRT,
    workspace: int | None = None,
    hardware_compatibility: bool = False,
    timing_cache: Path | None = None,
) -> dict[str, Any]:
    """Build the engine of a graph for batches from 1 to `max_batch`.

    Args:
        graph: an .onnx file made for TensorRT; its precision is the engine's.
        output: the engine file to write, whole or not at all.
        max_batch: the largest batch, and the one that kernels are tuned for.
        flavour: "tensorrt", for the GPU of this machine, or "tensorrt-rtx", for any RTX card and built without a GPU.
        workspace: bytes of GPU memory that a layer may use in addition to its data; no limit by default.
        hardware_compatibility: make TensorRT's engine run on every GPU from Ampere on, but slower; RTX engines do.
        timing_cache: file that keeps TensorRT's timings between builds; by default in the cache folder.

    Returns:
        Facts about the engine for the manifest: flavour, version, platform, gpu, compute_capability, cuda,
        hardware_compatibility, min_batch, opt_batch, max_batch, precision and onnx_sha256.

    Raises:
        InputError: if the library or the GPU is missing.
        GateError: if TensorRT rejects the graph, fails to build it, or crashes.
    """
    say(f"building {output.name} with {FLAVOURS[flavour].title}; this can take minutes")
    return _run(
        EngineRequest(
            graph=graph,
            output=output,
            max_batch=max_batch,
            flavour=flavour,
            workspace=workspace,
            hardware_compatibility=hardware_compatibility,
            timing_cache=timing_cache,
        )
    )


def check_with_rtx(graph: Path, max_batch: int) -> dict[str, Any]:
    """Have TensorRT for RTX parse and build a graph, which needs no GPU, and discard the engine.

    Returns:
        Facts about the engine, as `build_engine` does.

    Raises:
        InputError: if TensorRT for RTX is missing.
        GateError: if it rejects the graph, fails to build it, or crashes.
    """
    return _run(EngineRequest(graph=graph, output=None, max_batch=max_batch, flavour=RTX))


def _run(request: EngineRequest) -> dict[str, Any]:
    """Build in another process, step by step, so that a crash can be placed."""
    title = FLAVOURS[request.flavour].title
    step = "it started"
    with Subprocess(title) as process:
        try:
            process.create(EngineBuild, request=request)
            step = "it parsed the graph"
            process.call("parse")
            step = "it built the engine"
            built: dict[str, Any] = process.call("build")
        except ProcessDiedError as death:
            failure = f"{title} crashed while {step} ({death})"
        except InputError:
            raise
        except GateError as error:
            failure = str(error)
        except LipsFormerError as error:  # any other exception of the library
            failure = f"{error}, while {step}"
        else:
            _say_notes(process)
            return built
        with contextlib.suppress(LipsFormerError):  # there may be no build, or no process
            _say_notes(process)
    raise GateError(f"{request.graph.name}: {failure}; {_other_target(request.graph) or WITHOUT}")


def _say_notes(process: Subprocess) -> None:
    for note in process.call("take_notes"):
        say(note, always=True)


def _other_target(graph: Path) -> str | None:
    """The explanation of the failure, if the graph was made for ONNX Runtime."""
    try:
        content = onnx.load(graph, load_external_data=False).graph
    except Exception:  # noqa: BLE001 - not an ONNX file at all: TensorRT said so already
        return None
    # TensorRT quantizes only to symmetric int8, and no biases.
    unlike = {
        tensor.name for tensor in content.initializer if tensor.data_type in (TensorProto.INT32, TensorProto.UINT8)
    }
    alien = {
        node.op_type
        for node in content.node
        if node.domain not in ("", "ai.onnx")
        or node.op_type == "Attention"
        or (node.op_type in ("QuantizeLinear", "DequantizeLinear") and unlike.intersection(node.input))
    }
    if not alien:
        return None
    return f"it was made for ONNX Runtime ({', '.join(sorted(alien))}): give the bundle's graph for TensorRT"
