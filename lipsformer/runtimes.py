"""What can run a model: PyTorch and ONNX Runtime, behind one small interface.

A runtime maps uint8 pixels (N, S, S, 3) to float32 logits (N, K). It says which device really runs it: an execution
provider that was asked for and silently replaced is an error, not a slow answer.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .errors import InputError

if TYPE_CHECKING:
    from .checkpoint import Checkpoint

__all__ = ["OnnxRuntime", "Pixels", "Runtime", "TorchRuntime"]

Pixels = NDArray[np.uint8]  # (N, S, S, 3)
Logits = NDArray[np.float32]  # (N, K)

INPUT_NAME = "pixels"
OUTPUT_NAME = "logits"
METADATA_KEY = "lipsformer"


class Runtime(Protocol):
    """Something that classifies pixels. `provider` names what runs it, as it is told to people."""

    provider: str

    def infer(self, pixels: Pixels) -> Logits:
        """Logits (N, K) of pixels (N, S, S, 3)."""
        ...


class TorchRuntime:
    """Runs a checkpoint in float32 on `device` ("cpu" or "cuda")."""

    def __init__(self, checkpoint: Checkpoint, device: str = "cpu") -> None:
        import torch

        from .normalise import Normalise

        if device == "cuda" and not torch.cuda.is_available():
            raise InputError("--device cuda: PyTorch finds no CUDA device; run `lipsformer doctor`")
        self.provider = f"torch-{device}"
        self.device = torch.device(device)
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
        model: the .onnx file, or its bytes.
        device: "auto" (CUDA if it works, else the CPU), "cpu" or "cuda".
        threads: CPU threads for one inference; by default all cores this process may use.

    Raises:
        InputError: if ONNX Runtime is missing, the file is not a graph that we exported, or "cuda" does not work.
    """

    def __init__(self, model: Path | bytes, device: str = "auto", threads: int | None = None) -> None:
        ort = _import_onnxruntime()
        label = str(model) if isinstance(model, Path) else "model"
        if isinstance(model, Path) and not model.is_file():
            raise InputError(f"{model}: no such file; give the .onnx file that `lipsformer export` wrote")
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
        options.log_severity_level = 3
        cuda = device != "cpu" and "CUDAExecutionProvider" in ort.get_available_providers()
        providers = (["CUDAExecutionProvider"] if cuda else []) + ["CPUExecutionProvider"]
        try:
            source = model if isinstance(model, bytes) else os.fspath(model)
            self.session = ort.InferenceSession(source, options, providers=providers)
        except Exception as error:  # noqa: BLE001 - ONNX Runtime raises its own types, without a common base
            raise InputError(f"{label}: ONNX Runtime cannot load it ({_first_line(error)}); export it again") from None
        self.provider: str = self.session.get_providers()[0]  # what runs, not what was asked for
        if device == "cuda" and self.provider != "CUDAExecutionProvider":
            raise InputError("--device cuda: ONNX Runtime fell back to the CPU; run `lipsformer doctor`")
        inputs = self.session.get_inputs()
        if [i.name for i in inputs] != [INPUT_NAME] or inputs[0].type != "tensor(uint8)":
            raise InputError(
                f"{label}: not a graph that `lipsformer export` wrote (its input is not uint8 '{INPUT_NAME}')"
            )

    def metadata(self) -> dict[str, Any]:
        """What the export wrote into the graph: classes, preprocessing, and where it came from.

        Raises:
            InputError: if the graph carries none.
        """
        text = self.session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
        if text is None:
            raise InputError("the ONNX file carries no LipsFormer metadata; export it with `lipsformer export`")
        metadata: dict[str, Any] = json.loads(text)
        return metadata

    def infer(self, pixels: Pixels) -> Logits:
        """Logits (N, K) of pixels (N, S, S, 3)."""
        logits: Logits = self.session.run([OUTPUT_NAME], {INPUT_NAME: np.ascontiguousarray(pixels)})[0]
        return logits


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__


def _import_onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise InputError("ONNX Runtime is not installed; pip install 'lipsformer[cpu]' or 'lipsformer[gpu]'") from None
    return onnxruntime
