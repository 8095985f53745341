"""What can run a model: PyTorch and ONNX Runtime, behind one small interface.

A runtime maps uint8 pixels (N, S, S, 3) to float32 logits (N, K). It says which device really runs it: an execution
provider that was asked for and silently replaced is an error, not a slow answer.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .console import say
from .errors import InputError
from .machine import cores, torch_device

if TYPE_CHECKING:
    from .checkpoint import Checkpoint

__all__ = ["CUDA", "Logits", "OnnxRuntime", "Pixels", "Runtime", "TorchRuntime", "open_session"]

Pixels = NDArray[np.uint8]  # (N, S, S, 3)
Logits = NDArray[np.float32]  # (N, K)

INPUT_NAME = "pixels"
OUTPUT_NAME = "logits"
METADATA_KEY = "lipsformer"

CUDA = "CUDAExecutionProvider"
ERRORS_AND_WORSE, FATAL = 3, 4  # ONNX Runtime's log severities


class Runtime(Protocol):
    """Something that classifies pixels. `provider` names what runs it, as it is told to people."""

    provider: str

    def infer(self, pixels: Pixels) -> Logits:
        """Logits (N, K) of pixels (N, S, S, 3)."""
        ...


class TorchRuntime:
    """Runs a checkpoint in float32 on `device`: "auto" (CUDA where there is one), "cpu" or "cuda".

    Raises:
        InputError: if the device cannot be had.
    """

    def __init__(self, checkpoint: Checkpoint, device: str = "cpu") -> None:
        from .normalise import Normalise

        self.device = torch_device(device)
        self.provider = f"torch-{self.device.type}"
        self.normalise = Normalise(checkpoint.preprocessing).to(self.device)
        self.model = checkpoint.model.to(self.device)

    def infer(self, pixels: Pixels) -> Logits:
        """Logits (N, K) of pixels (N, S, S, 3)."""
        import torch

        with torch.inference_mode():
            batch = torch.tensor(pixels, device=self.device)
            logits: Logits = self.model(self.normalise(batch)).cpu().numpy()
        return logits


class OnnxRuntime:
    """Runs an exported graph in ONNX Runtime.

    Args:
        model: the .onnx file.
        device: "auto" (CUDA if it works, else the CPU, which is said on stderr), "cpu" or "cuda".
        threads: CPU threads for one inference; by default all cores this process may use.

    Raises:
        InputError: if ONNX Runtime is missing, the file is not a graph that we exported, or "cuda" does not work.
    """

    def __init__(self, model: Path, device: str = "auto", threads: int | None = None) -> None:
        if not model.is_file():
            raise InputError(f"{model}: no such file; give the .onnx file that `lipsformer export` wrote")
        self.model = model
        self.session = open_session(model, cuda=device != "cpu", threads=threads)
        self.provider: str = self.session.get_providers()[0]  # what runs, not what was asked for
        if self.provider != CUDA and device == "cuda":
            raise InputError("--device cuda: ONNX Runtime fell back to the CPU; run `lipsformer doctor`")
        if self.provider != CUDA and device == "auto" and CUDA in _import_onnxruntime().get_available_providers():
            say("ONNX Runtime is built for CUDA but runs on the CPU here; `lipsformer doctor` says why")
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        described = [(value.name, value.type, len(value.shape)) for value in (*inputs, *outputs)]
        if described != [(INPUT_NAME, "tensor(uint8)", 4), (OUTPUT_NAME, "tensor(float)", 2)]:
            raise InputError(f"{model}: not a graph that `lipsformer export` wrote (uint8 pixels in, float logits out)")
        self.image_size: int = inputs[0].shape[1]
        self.outputs: int = outputs[0].shape[1]

    def metadata(self) -> dict[str, Any]:
        """What the export wrote into the graph: classes, preprocessing, and where it came from.

        Raises:
            InputError: if the graph carries none that can be read.
        """
        text = self.session.get_modelmeta().custom_metadata_map.get(METADATA_KEY, "")
        try:
            metadata: dict[str, Any] = dict(json.loads(text))
        except (ValueError, TypeError, RecursionError):
            raise InputError(f"{self.model}: carries no LipsFormer metadata; export it again") from None
        return metadata

    def infer(self, pixels: Pixels) -> Logits:
        """Logits (N, K) of pixels (N, S, S, 3)."""
        logits: Logits = self.session.run([OUTPUT_NAME], {INPUT_NAME: np.ascontiguousarray(pixels)})[0]
        return logits


def open_session(model: Path | bytes, *, cuda: bool, threads: int | None = None) -> Any:
    """An ONNX Runtime session of an .onnx file or of its bytes; its `get_providers()` says what it really runs on.

    Raises:
        InputError: if ONNX Runtime is missing or cannot load the model.
    """
    ort = _import_onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or cores()
    options.log_severity_level = ERRORS_AND_WORSE
    providers = ["CPUExecutionProvider"]
    if cuda and CUDA in ort.get_available_providers():
        providers.insert(0, CUDA)
        ort.set_default_logger_severity(FATAL)  # a missing CUDA library is told by our own line, not by four of its
        with contextlib.redirect_stdout(io.StringIO()):
            ort.preload_dlls()  # from the CUDA packages beside it, where there are any
    try:
        return ort.InferenceSession(model if isinstance(model, bytes) else os.fspath(model), options, providers)
    except Exception as error:  # noqa: BLE001 - ONNX Runtime raises its own types, without a common base
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{model!s:.300}: ONNX Runtime cannot load it ({reason}); export it again") from None


def _import_onnxruntime() -> Any:
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when it is imported; it would call its makers
    try:
        import onnxruntime
    except ImportError:
        raise InputError("ONNX Runtime is not installed; pip install 'lipsformer[cpu]' or 'lipsformer[gpu]'") from None
    return onnxruntime
