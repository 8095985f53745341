"""Engines out of graphs, by TensorRT, and the check of a graph on a machine without a GPU, by TensorRT for RTX.

Both run in a process of their own: what TensorRT does not like it often answers with a crash, and a crash must cost the
engine, not the export. So there is one way for both, and a build also gives all its memory back.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto

import lipsformer
from lipsformer.inference.runtimes.tensorrt_library import FLAVOURS, RTX, TENSORRT
from lipsformer.system.console import say
from lipsformer.system.errors import GateError, InputError

__all__ = ["build_engine", "check_with_rtx"]

WITHOUT = "leave out --trt, --trt-rtx and --trt-check to go on with ONNX Runtime alone"


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineRequest:
    """What the other process is to build; without `output` it builds and throws away."""

    graph: str
    output: str | None
    max_batch: int
    flavour: str
    workspace: int | None = None
    hardware_compatibility: bool = False
    timing_cache: str | None = None


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
    """Builds the engine of a graph for batches from 1 to `max_batch`.

    Args:
        graph: an .onnx file made for TensorRT; its precision is the engine's.
        output: the engine file to write; it appears whole or not at all.
        max_batch: the largest batch, for which the kernels are tuned too.
        flavour: "tensorrt", for the GPU of this machine, or "tensorrt-rtx", for any RTX card and built without a GPU.
        workspace: bytes of GPU memory that a layer may use besides its data; by default as much as there is.
        hardware_compatibility: make TensorRT's engine run on every GPU from Ampere on, and slower; engines for RTX do.
        timing_cache: where TensorRT's measurements are kept between builds; by default in the cache folder.

    Returns:
        What the engine was built with, for the manifest: flavour, version, platform, gpu, compute_capability, cuda,
        hardware_compatibility, min_batch, opt_batch, max_batch, precision and onnx_sha256.

    Raises:
        InputError: if the library or the GPU is missing.
        GateError: if TensorRT refuses the graph, fails to build it, or crashes.
    """
    say(f"building {output.name} with {FLAVOURS[flavour].title}; this can take minutes")
    return _in_another_process(
        EngineRequest(
            graph=str(graph),
            output=str(output),
            max_batch=max_batch,
            flavour=flavour,
            workspace=workspace,
            hardware_compatibility=hardware_compatibility,
            timing_cache=None if timing_cache is None else str(timing_cache),
        )
    )


def check_with_rtx(graph: Path, max_batch: int) -> dict[str, Any]:
    """Has TensorRT for RTX parse and build a graph, which needs no GPU, and throws the engine away.

    Returns:
        What it was built with, as `build_engine` does.

    Raises:
        InputError: if TensorRT for RTX is missing.
        GateError: if it refuses the graph, fails to build it, or crashes.
    """
    return _in_another_process(EngineRequest(graph=str(graph), output=None, max_batch=max_batch, flavour=RTX))


def _in_another_process(order: EngineRequest) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="lipsformer-") as folder:
        answer = Path(folder, "answer.json")
        # The child must find the package as this process does, from a checkout too.
        path = os.pathsep.join(filter(None, [str(Path(lipsformer.__file__).parents[1]), os.environ.get("PYTHONPATH")]))
        child = subprocess.run(  # noqa: S603 - our own module, no shell
            [sys.executable, "-m", f"{__package__}.engine_build", json.dumps(dataclasses.asdict(order)), str(answer)],
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        told = json.loads(answer.read_text(encoding="utf-8")) if answer.is_file() else {}
    for note in told.get("notes", []):
        say(note)
    if "built" in told:
        built: dict[str, Any] = told["built"]
        return built
    if "usage" in told:
        raise InputError(told["usage"])
    title = FLAVOURS[order.flavour].title
    failure = told.get("failure") or f"{title} crashed while {told.get('stage', 'it started')} ({_end_of(child)})"
    raise GateError(f"{Path(order.graph).name}: {failure}; {_other_target(order.graph) or WITHOUT}")


def _end_of(child: subprocess.CompletedProcess[str]) -> str:
    """How a process ended that gave no answer: its signal or status, and the last thing that it said."""
    try:
        end = signal.Signals(-child.returncode).name
    except ValueError:
        end = f"exit status {child.returncode}"
    words = child.stderr.strip().splitlines() or child.stdout.strip().splitlines()
    return ": ".join([end, *words[-1:]])[:300]


def _other_target(graph: str) -> str | None:
    """What to say where a graph that was made for ONNX Runtime explains the failure."""
    try:
        content = onnx.load(graph, load_external_data=False).graph
    except Exception:  # noqa: BLE001 - not an ONNX file at all: TensorRT said so already
        return None
    # TensorRT quantizes to int8 alone: symmetric activations, and no biases.
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
