"""Runtimes behind one small interface: PyTorch, ONNX Runtime, OpenVINO and TensorRT."""

from .base import (
    FEATURES_NAME,
    IMAGES_NAME,
    INPUT_NAME,
    LOGITS_NAME,
    ONNX_METADATA_KEY,
    Features,
    GraphRuntime,
    Logits,
    Outputs,
    Pixels,
    Runtime,
    RuntimeOptions,
)
from .onnxruntime import CUDA, OnnxRuntime, import_onnxruntime, open_session
from .pytorch import TorchRuntime

__all__ = [
    "CUDA",
    "FEATURES_NAME",
    "IMAGES_NAME",
    "INPUT_NAME",
    "LOGITS_NAME",
    "ONNX_METADATA_KEY",
    "Features",
    "GraphRuntime",
    "Logits",
    "OnnxRuntime",
    "Outputs",
    "Pixels",
    "Runtime",
    "RuntimeOptions",
    "TorchRuntime",
    "import_onnxruntime",
    "open_session",
]
