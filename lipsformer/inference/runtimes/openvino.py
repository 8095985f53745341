"""The fp32 graph computed in bfloat16 on the CPU, by OpenVINO."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np

from lipsformer.system.errors import InputError
from lipsformer.system.extras import require
from lipsformer.system.hardware import CPU_INFO, bf16_instructions, cores, cpu_name

from .base import FEATURES_NAME, INPUT_NAME, LOGITS_NAME, Outputs, Pixels

__all__ = ["OpenVinoRuntime", "check_bf16", "import_openvino"]


class OpenVinoRuntime:
    """Runs an exported fp32 graph in bf16 on the CPU; calls from several threads run one at a time.

    OpenVINO compiles the graph for a single image: it fuses more than for an unknown batch size, and no image can
    depend on the others of its batch. As in `OnnxRuntime`, a batch is divided among `threads` threads that compute
    whole images. Images that are left over are computed one by one, by all threads together. The graph is in memory
    twice.

    Args:
        model: the .onnx file of a bundle.
        threads: CPU threads for one inference; by default all cores this process may use.

    Raises:
        InputError: if OpenVINO is missing, or OpenVINO or the CPU cannot compute the graph in bf16.
    """

    provider = "OpenVINO CPU, bf16"

    def __init__(self, model: Path, threads: int | None = None) -> None:
        check_bf16()
        openvino = import_openvino()
        self.threads = threads or cores()
        try:
            graph = openvino.Core().read_model(model)
            _, self.image_size, _, _ = (axis.get_max_length() for axis in graph.input(INPUT_NAME).partial_shape)
            graph.reshape({INPUT_NAME: [1, self.image_size, self.image_size, 3]})
            self._widths = {output.any_name: output.shape[1] for output in graph.outputs}
            self._together = _compile(graph, streams=1, threads=self.threads).create_infer_request()
            if self.threads > 1:
                divided = _compile(graph, streams=self.threads, threads=self.threads)
                self._divided = openvino.AsyncInferQueue(divided, self.threads)
                self._divided.set_callback(_keep)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{model}: OpenVINO cannot compile it ({reason}); export it again") from None
        self.outputs: int = self._widths[LOGITS_NAME]
        self.channels: int | None = self._widths.get(FEATURES_NAME)
        self._lock = threading.Lock()

    def infer(self, pixels: Pixels) -> Outputs:
        """Logits (N, K) and features (N, C) of pixels (N, S, S, 3).

        Raises:
            TypeError: if the pixels are not uint8: OpenVINO 2026.4 would cast them without an error.
        """
        pixels = pixels.astype(np.uint8, casting="no", copy=False)
        rows = {name: np.empty((len(pixels), width), np.float32) for name, width in self._widths.items()}
        divided = len(pixels) - len(pixels) % self.threads if self.threads > 1 else 0
        with self._lock:
            for index in range(divided):
                self._divided.start_async({INPUT_NAME: pixels[index : index + 1]}, (rows, index))
            if divided:
                self._divided.wait_all()
            for index in range(divided, len(pixels)):
                self._together.infer({INPUT_NAME: pixels[index : index + 1]})
                _keep(self._together, (rows, index))
        return Outputs(rows[LOGITS_NAME], rows.get(FEATURES_NAME))


def check_bf16() -> None:
    """Check that OpenVINO is installed and that this CPU has instructions for bf16.

    OpenVINO would not say so: 2026.4 lists BF16 among the capabilities of any CPU with AVX-512, reports bf16 after
    compiling, and emulates it, 48 times slower than with AMX.

    Raises:
        InputError: if either is missing.
    """
    if bf16_instructions() is None:
        raise InputError(
            f"bf16 needs AMX or AVX512-BF16, and this machine's {CPU_INFO} ({cpu_name()}) lists neither; use fp32"
        )
    import_openvino()


def import_openvino() -> Any:
    """Import OpenVINO with its telemetry disabled.

    Raises:
        InputError: if it is not installed.
    """
    # Importing it reports the import to Google Analytics and writes into ~/intel, and no setting disables that. It
    # does neither if this package, which it requires, cannot be imported.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    require("openvino")
    import openvino

    return openvino


def _compile(graph: Any, *, streams: int, threads: int) -> Any:
    """Compile a graph for the CPU in bf16, and check that this is what OpenVINO will compute.

    Raises:
        InputError: if it is not.
    """
    openvino = import_openvino()
    settings = {
        "INFERENCE_PRECISION_HINT": "bf16",
        "NUM_STREAMS": streams,
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": False,  # a pinned thread waits for whatever else runs on its core
    }
    compiled = openvino.Core().compile_model(graph, "CPU", settings)
    found = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    if found != "bf16":
        raise InputError(f"OpenVINO {openvino.get_version()} computes in {found} although bf16 was requested; use fp32")
    return compiled


def _keep(request: Any, place: tuple[dict[str, Any], int]) -> None:
    """Copy the outputs of a request for one image into its row."""
    rows, index = place
    for name, values in rows.items():
        values[index] = request.get_tensor(name).data[0]
