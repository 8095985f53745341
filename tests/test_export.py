"""Export and its gate: what passes is equal, what is spoiled or frozen leaves no bundle."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from trained import Trained

from lipsformer import load_predictor
from lipsformer.checkpoint import Checkpoint
from lipsformer.errors import GateError, InputError
from lipsformer.export import export_bundle
from lipsformer.export.graph import PixelsToLogits
from lipsformer.export.parity import check_parity
from lipsformer.manifest import read_manifest
from lipsformer.runtimes import OnnxRuntime


@pytest.fixture(scope="module")
def graph(trained: Trained) -> onnx.ModelProto:
    return onnx.load(trained.bundle / "ort-fp32.onnx")


def copy_of(graph: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    return copy


def test_the_bundle_tells_what_it_is(trained: Trained) -> None:
    manifest = read_manifest(trained.bundle)
    assert manifest.classes == trained.classes
    assert manifest.max_batch == 16
    assert {file.name for file in manifest.files} == {"ort-fp32.onnx", "parity.json", "parity.md"}
    report = json.loads((trained.bundle / "parity.json").read_text())
    assert report["passed"]
    assert [row["batch"] for row in report["batches"]] == [1, 3, 16]
    assert report["images"] == 28  # each sample photo and its mirror image
    assert all(row["relative_l2"] <= 1e-5 for row in report["batches"])
    assert "PASSED" in (trained.bundle / "parity.md").read_text()


def test_the_graph_takes_pixels_of_any_batch_and_one_size(graph: onnx.ModelProto) -> None:
    assert [entry.version for entry in graph.opset_import if not entry.domain] == [20]
    shape = graph.graph.input[0].type.tensor_type
    assert shape.elem_type == onnx.TensorProto.UINT8
    assert [d.dim_param or d.dim_value for d in shape.shape.dim] == ["batch", 32, 32, 3]
    for path in (Path(__file__).parents[1], Path(torch.__file__).parent):  # no source paths of the machine
        assert str(path).encode() not in graph.SerializeToString()
    assert not any(node.metadata_props for node in graph.graph.node)


def test_the_onnx_file_alone_carries_classes_and_preprocessing(trained: Trained) -> None:
    alone = load_predictor(trained.bundle / "ort-fp32.onnx")
    bundle = load_predictor(trained.bundle)
    assert alone.classes == bundle.classes
    assert alone.preprocessing == bundle.preprocessing


def test_one_changed_weight_fails_the_gate(trained: Trained, graph: onnx.ModelProto, tmp_path: Path) -> None:
    def spoil(_: Checkpoint, __: int) -> onnx.ModelProto:
        spoiled = copy_of(graph)
        tensor = next(t for t in spoiled.graph.initializer if list(t.dims) == [16, 64])  # of the first MLP
        values = numpy_helper.to_array(tensor).copy()
        values.flat[0] += 0.5
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
        return spoiled

    with pytest.raises(GateError, match=r"parity failed, no bundle written: batch 1: relative L2"):
        export_bundle(trained.checkpoint, tmp_path / "bundle", build=spoil)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # inside the exporter
def test_a_frozen_batch_fails_the_gate(trained: Trained, tmp_path: Path) -> None:
    """The official code's trap: `int()` on a batch size bakes the trace's batch into the graph."""

    def freeze(checkpoint: Checkpoint, _: int) -> onnx.ModelProto:
        example = torch.zeros(2, 32, 32, 3, dtype=torch.uint8)
        model = PixelsToLogits(checkpoint).eval()
        program = torch.onnx.export(model, (example,), input_names=["pixels"], output_names=["logits"], verbose=False)
        assert program is not None
        frozen = program.model_proto
        for value in (frozen.graph.input[0], frozen.graph.output[0]):
            value.type.tensor_type.shape.dim[0].dim_param = "batch"  # it claims to be dynamic, and is not
        del frozen.graph.value_info[:]
        return frozen

    with pytest.raises(GateError, match=r"batch 1: .*batch 3: .*batch 16: "):
        export_bundle(trained.checkpoint, tmp_path / "bundle", build=freeze)
    assert not (tmp_path / "bundle").exists()


class Fake:
    """A runtime that answers its pixels' mean in each of three channels, or what `answer` makes of it."""

    provider = "fake"

    def __init__(self, answer=lambda logits: logits) -> None:  # type: ignore[no-untyped-def]
        self.answer = answer

    def infer(self, pixels: np.ndarray) -> np.ndarray:
        return self.answer(pixels.astype(np.float32).mean(axis=(1, 2)))


def test_the_gate_sees_every_way_of_being_wrong() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 4, 4, 3), dtype=np.uint8)
    right = Fake().infer(pixels)

    def failures(answer) -> list[str]:  # type: ignore[no-untyped-def]
        return check_parity(Fake(answer), right, pixels, batches=(1, 3, 8), source="noise").failures

    assert failures(lambda logits: logits) == []
    assert len(failures(lambda logits: logits * 1.0001)) == 3
    assert len(failures(lambda logits: logits * np.nan)) == 3
    assert len(failures(lambda logits: logits[:, ::-1])) == 3
    assert len(failures(lambda logits: logits[:, :2])) == 3  # a class is missing
    assert len(failures(lambda logits: logits[:1])) == 2  # one answer whatever the batch
    assert len(failures(lambda logits: logits[::-1])) == 2  # right images, wrong order
    assert len(failures(lambda logits: logits - logits.mean(axis=0))) == 3  # depends on the neighbours
    assert len(failures(lambda logits: 1 / 0)) == 3


def test_too_few_images_for_the_largest_batch_are_refused() -> None:
    pixels = np.zeros((2, 4, 4, 3), dtype=np.uint8)
    with pytest.raises(InputError, match="2 images, parity at batch 3 needs as many"):
        check_parity(Fake(), Fake().infer(pixels), pixels, batches=(1, 3), source="here")


def test_a_changed_graph_is_refused_when_loaded(trained: Trained, tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    copy.mkdir()
    for file in trained.bundle.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    load_predictor(copy)
    content = bytearray((copy / "ort-fp32.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (copy / "ort-fp32.onnx").write_bytes(content)
    with pytest.raises(GateError, match=r"ort-fp32\.onnx: its SHA-256 is not the manifest's"):
        load_predictor(copy)


def test_wrong_height_is_refused_not_resized(trained: Trained) -> None:
    runtime = OnnxRuntime(trained.bundle / "ort-fp32.onnx", device="cpu")
    with pytest.raises(Exception, match="invalid dimensions"):
        runtime.infer(np.zeros((1, 30, 32, 3), dtype=np.uint8))
