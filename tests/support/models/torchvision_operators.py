"""pytest plugin that lets torchvision be imported next to the CPU build of PyTorch.

PyPI's torchvision links CUDA's libraries. Without them its operators stay undefined, and its import fails over two, for
which its Python code registers shapes. They are declared here first.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

__all__ = ["pytest_configure"]

DECLARED: list[torch.library.Library] = []  # an operator lives as long as its library


def pytest_configure() -> None:
    """Declares the operators, if torchvision's library cannot be loaded."""
    spec = importlib.util.find_spec("torchvision")
    assert spec is not None
    assert spec.origin is not None
    try:
        for file in Path(spec.origin).parent.glob("_C*"):
            torch.ops.load_library(file)
    except OSError:
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        DECLARED.append(library)
