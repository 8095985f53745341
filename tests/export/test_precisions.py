"""The trained model that ships, in every precision, on real photos: as near as promised, and refused once spoiled."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

from lipsformer import load_predictor
from lipsformer.bundle.manifest import PRECISIONS, Manifest, read_manifest
from lipsformer.checkpoints.pretrained import PRETRAINED
from lipsformer.export import ExportSettings, export_bundle, verify_bundle
from lipsformer.export.parity.check import checked_batches
from lipsformer.export.parity.thresholds import THRESHOLDS
from lipsformer.images.samples import SAMPLES
from lipsformer.inference.runtimes import OnnxRuntime
from lipsformer.system.errors import GateError

pytestmark = pytest.mark.slow

CHECKPOINT = PRETRAINED["lipsformer_cifar10"]
GRAPHS = tuple(name for name in PRECISIONS if name != "bf16")  # which is the graph of fp32


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """112 real photos in the size of CIFAR-10's: of the parts of the sample photos, those that the model is surest of.

    The photos show none of its classes. On most parts two classes are nearly tied, and rounding decides between them.
    """
    folder = tmp_path_factory.mktemp("photos")
    parts: list[Image.Image] = []
    for path in sorted(SAMPLES.glob("*.jpg")):
        with Image.open(path) as photo:
            for share, (column, row) in itertools.product((0.4, 0.6), itertools.product(range(4), range(3))):
                side = round(min(photo.size) * share)
                left, top = (photo.width - side) * column // 3, (photo.height - side) * row // 2
                box = (left, top, left + side, top + side)
                parts.append(photo.resize((64, 64), Image.Resampling.BICUBIC, box=box))
    answers = load_predictor(CHECKPOINT).predict(parts, top_k=2)
    leads = [first.score - second.score for first, second in answers]
    for index in sorted(range(len(parts)), key=lambda index: -leads[index])[:112]:
        parts[index].save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def bundle(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("all") / "bundle"
    export_bundle(CHECKPOINT, output, ExportSettings(precisions=GRAPHS, calibration=photos, max_batch=8))
    return output


def test_every_precision_is_as_near_as_promised(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    assert manifest.precisions == GRAPHS
    for precision in GRAPHS:
        parity: Any = manifest.graph(precision).parity
        assert parity["photos"] == 112  # the half that was not calibrated on, and its mirror images
        assert parity["thresholds"] == THRESHOLDS[precision]
        assert [row["batch"] for row in parity["batches"]] == list(checked_batches(8))
        assert load_predictor(bundle, precision=precision).precision == precision
        assert load_predictor(bundle / f"ort-{precision}.onnx").precision == precision
    exact, half, quantized = (manifest.graph(precision).parity["batches"] for precision in GRAPHS)  # type: ignore[index]
    for row in exact:
        assert row["relative_l2"] <= 1e-5
        assert row["top1_agreement"] == 1.0
    for row in half:
        assert 1e-5 < row["relative_l2"] <= 5e-3
        assert row["top1_agreement"] >= 0.995
    for row in quantized:
        assert row["relative_l2"] > 5e-3
        assert row["top1_agreement"] >= 0.97
    assert verify_bundle(bundle, device="cpu").failures == []


def narrow_ranges(graph: onnx.ModelProto) -> None:
    """An eighth of the range of every quantized map of tokens: what is outside is cut."""
    scales = {node.input[1] for node in graph.graph.node if node.op_type == "QuantizeLinear"}
    for tensor in graph.graph.initializer:
        if tensor.name in scales:
            value = numpy_helper.to_array(tensor) / np.float32(8)
            tensor.CopyFrom(numpy_helper.from_array(np.asarray(value, np.float32), tensor.name))


def one_scale(graph: onnx.ModelProto) -> None:
    """A weight's channels in the steps of the first of them."""
    tensor = max(graph.graph.initializer, key=lambda t: len(t.dims) == 1 and "scale" in t.name and t.dims[0])
    values = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(np.full_like(values, values.max() * 2), tensor.name))


@pytest.mark.parametrize("spoil", [narrow_ranges, one_scale])
def test_wrong_scales_fail_the_gate(
    spoil: Callable[[onnx.ModelProto], None],
    bundle: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graph = onnx.load(bundle / "ort-int8.onnx")
    spoil(graph)
    monkeypatch.setattr("lipsformer.export.bundle.build_graph", lambda *_, **__: onnx.ModelProto())
    monkeypatch.setattr("lipsformer.export.bundle.quantize", lambda *_, **__: graph)
    with pytest.raises(GateError, match=r"ort-int8\.onnx on \w+: parity failed, no bundle written: batch 1: "):
        export_bundle(CHECKPOINT, tmp_path / "bundle", ExportSettings(precisions=("int8",), calibration=photos))
    assert list(tmp_path.iterdir()) == []


def test_dynamic_quantization_fails_by_its_batch_mates(bundle: Path, tmp_path: Path, photos: Path) -> None:
    from onnxruntime.quantization import quantize_dynamic

    from lipsformer.export.parity.check import check_parity
    from lipsformer.export.parity.gate_images import ImageSource
    from lipsformer.export.parity.reference import Reference

    manifest: Manifest = read_manifest(bundle)
    quantize_dynamic(bundle / "ort-fp32.onnx", tmp_path / "dynamic.onnx", op_types_to_quantize=["MatMul", "Gemm"])
    exact = OnnxRuntime(bundle / "ort-fp32.onnx", "cpu")
    images = ImageSource.find(photos, ()).gate_images(16, manifest.preprocessing)
    found = check_parity(
        OnnxRuntime(tmp_path / "dynamic.onnx", "cpu"),
        Reference.of(exact, images),
        file="dynamic.onnx",
        target="ort",
        precision="int8",
        max_batch=8,
        limits=THRESHOLDS["int8"],
    )
    assert any(sentence.startswith("batch invariance: neighbours") for sentence in found.failures)
