"""Every graph that an export makes for TensorRT is one that TensorRT for RTX parses and builds; no GPU is needed.

The full LipsFormer-Tiny is here with few blocks, since tracing all of them takes minutes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from small import CSWIN, PLAIN_CSWIN, PLAIN_SWIN, SWIN

from lipsformer import Preprocessing, create_model, load_checkpoint, save_checkpoint
from lipsformer.checkpoint import Checkpoint
from lipsformer.export.engines import check_with_rtx
from lipsformer.export.graph import build_graph
from lipsformer.models import build_model
from lipsformer.network import LipsFormer

SHALLOW = {"depths": (1, 1, 1, 1)}
FAMILIES = {
    "lipsformer-swin": SWIN.replace(**SHALLOW),
    "lipsformer-cswin": CSWIN.replace(**SHALLOW),
    "swin": PLAIN_SWIN.replace(depths=(1, 2, 1, 1)),  # every other block is shifted
    "cswin": PLAIN_CSWIN.replace(**SHALLOW),
}
TINY: dict[str, dict[str, Any]] = {"lipsformer_swin_tiny": {}, "lipsformer_tiny": SHALLOW}
PRECISIONS = ("fp32", "fp16")


def checkpoint_of(model: LipsFormer, folder: Path) -> Checkpoint:
    save_checkpoint(
        folder / "model.safetensors",
        config=model.config,
        weights=model.state_dict(),
        classes=tuple(f"kind {number}" for number in range(model.config.num_classes)),
        preprocessing=Preprocessing(image_size=model.config.image_size),
        metrics={},
    )
    return load_checkpoint(folder / "model.safetensors")


def check(checkpoint: Checkpoint, precision: str, folder: Path) -> None:
    path = folder / f"tensorrt-{precision}.onnx"
    onnx.save(build_graph(checkpoint, max_batch=8, precision=precision), path)
    built = check_with_rtx(path, 8)
    assert (built["precision"], built["max_batch"]) == (precision, 8)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    "family", [name if name == "lipsformer-swin" else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
def test_every_family_builds(family: str, precision: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    check(checkpoint_of(build_model(FAMILIES[family]), tmp_path), precision, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", TINY)
def test_the_tiny_models_build_at_full_size(name: str, precision: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    check(checkpoint_of(create_model(name, 1000, **TINY[name]), tmp_path), precision, tmp_path)
