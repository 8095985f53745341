"""What can run a model, behind one small interface: PyTorch, ONNX Runtime and TensorRT."""

from .ort import CUDA, OnnxRuntime, open_session
from .pytorch import TorchRuntime
from .runtime import INPUT_NAME, METADATA_KEY, OUTPUT_NAME, Logits, Pixels, Runtime

__all__ = [
    "CUDA",
    "INPUT_NAME",
    "METADATA_KEY",
    "OUTPUT_NAME",
    "Logits",
    "OnnxRuntime",
    "Pixels",
    "Runtime",
    "TorchRuntime",
    "open_session",
]
