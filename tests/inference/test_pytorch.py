"""A checkpoint in PyTorch: float32 also where convolutions would be in TF32 by default."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from lipsformer import load_checkpoint
from lipsformer.inference.runtimes import TorchRuntime
from tests.support.trained import Trained

CONVOLUTION: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    before = CONVOLUTION.fp32_precision
    yield
    CONVOLUTION.fp32_precision = before


@pytest.mark.parametrize(("device", "precision"), [("cpu", "tf32"), ("cuda", "ieee")])
def test_a_gpu_computes_convolutions_in_float32(
    trained: Trained, monkeypatch: pytest.MonkeyPatch, device: str, precision: str
) -> None:
    CONVOLUTION.fp32_precision = "tf32"  # PyTorch's default
    monkeypatch.setattr("lipsformer.inference.runtimes.pytorch.torch_device", lambda name: torch.device(name))
    monkeypatch.setattr(torch.nn.Module, "to", lambda module, device: module)
    TorchRuntime(load_checkpoint(trained.checkpoint), device)
    assert CONVOLUTION.fp32_precision == precision
