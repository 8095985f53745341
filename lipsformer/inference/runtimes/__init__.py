"""Runtimes behind one small interface: PyTorch, ONNX Runtime and TensorRT."""

from .base import INPUT_NAME, ONNX_METADATA_KEY, OUTPUT_NAME, Logits, Pixels, Runtime, RuntimeOptions
from .onnxruntime import CUDA, OnnxRuntime, import_onnxruntime, open_session
from .pytorch import TorchRuntime

__all__ = [
    "CUDA",
    "INPUT_NAME",
    "ONNX_METADATA_KEY",
    "OUTPUT_NAME",
    "Logits",
    "OnnxRuntime",
    "Pixels",
    "Runtime",
    "RuntimeOptions",
    "TorchRuntime",
    "import_onnxruntime",
    "open_session",
]
