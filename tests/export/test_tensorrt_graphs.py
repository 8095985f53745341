"""TensorRT for RTX parses and builds every graph that an export makes for TensorRT; no GPU is needed.

The tiny models have their full width and few blocks: each further block of a stage repeats those before it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from lipsformer import Preprocessing, load_checkpoint, save_checkpoint
from lipsformer.bundle.manifest import PRECISIONS
from lipsformer.checkpoints.checkpoint import Checkpoint
from lipsformer.export.graph import build_graph
from lipsformer.export.int8.calibration import FEWEST
from lipsformer.export.int8.quantize import quantize
from lipsformer.export.tensorrt.build import check_with_rtx
from lipsformer.images.open import open_image
from lipsformer.images.samples import SAMPLES
from lipsformer.model.blocks import LipsFormer
from lipsformer.model.factory import build_model
from lipsformer.model.variants import make_config
from lipsformer.system.errors import GateError
from tests.support.models.small_models import CSWIN, PLAIN_CSWIN, PLAIN_SWIN, SWIN

pytestmark = pytest.mark.slow

SHALLOW: dict[str, Any] = {"depths": (1, 1, 1, 1)}
FAMILIES = {
    "lipsformer-swin": SWIN.replace(**SHALLOW),
    "lipsformer-cswin": CSWIN.replace(**SHALLOW),
    "swin": PLAIN_SWIN.replace(depths=(1, 2, 1, 1)),  # every other block is shifted
    "cswin": PLAIN_CSWIN.replace(**SHALLOW),
}
TINY = ("lipsformer_swin_tiny", "lipsformer_tiny", "cswin_tiny")


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


def in_int8(graph: onnx.ModelProto, checkpoint: Checkpoint, target: str) -> onnx.ModelProto:
    paths = sorted(SAMPLES.glob("*.jpg"))[: FEWEST // 2]  # enough: no check here depends on the scales
    photos = np.stack([checkpoint.preprocessing.apply(open_image(path)) for path in paths])
    return quantize(graph, np.concatenate([photos, photos[:, :, ::-1]]), target=target)


def check(checkpoint: Checkpoint, folder: Path) -> onnx.ModelProto:
    """Builds the graph of each precision; returns that of fp32."""
    graph = build_graph(checkpoint, max_batch=8)
    graphs = {
        "fp32": graph,
        "fp16": build_graph(checkpoint, max_batch=8, precision="fp16"),
        "int8": in_int8(graph, checkpoint, "tensorrt"),
    }
    assert {*graphs, "bf16"} == {*PRECISIONS}  # bf16 is for OpenVINO
    for precision, made in graphs.items():
        path = folder / f"tensorrt-{precision}.onnx"
        onnx.save(made, path)
        built = check_with_rtx(path, 8)
        assert (built["precision"], built["max_batch"]) == (precision, 8)
    return graph


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_builds(family: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    checkpoint = checkpoint_of(build_model(FAMILIES[family]), tmp_path)
    graph = check(checkpoint, tmp_path)
    if family == "lipsformer-swin":  # int8 for ONNX Runtime is rejected, and the reason given
        path = tmp_path / "ort-int8.onnx"
        onnx.save(in_int8(graph, checkpoint, "ort"), path)
        with pytest.raises(GateError, match=r"ort-int8.onnx: .* it was made for ONNX Runtime \(.*QuantizeLinear"):
            check_with_rtx(path, 8)


@pytest.mark.parametrize("name", TINY)
def test_the_tiny_models_build_at_full_width(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    check(checkpoint_of(build_model(make_config(name, **SHALLOW)), tmp_path), tmp_path)
