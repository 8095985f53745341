"""Export and its gate: what passes is equal, what is spoiled or frozen leaves no bundle."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from lipsformer import export, load_predictor, save_checkpoint
from lipsformer.bundle.manifest import read_manifest
from lipsformer.checkpoints.checkpoint import load_checkpoint
from lipsformer.export import ExportSettings, export_bundle, read_thresholds
from lipsformer.export.graph import build_graph
from lipsformer.inference.runtimes import OnnxRuntime
from lipsformer.system.errors import GateError, InputError
from tests.support.nursery import Nursery
from tests.support.trained import Trained

FLOAT = onnx.TensorProto.FLOAT


@pytest.fixture(scope="module")
def graph(trained: Trained) -> onnx.ModelProto:
    return onnx.load(trained.bundle / "ort-fp32.onnx")


@pytest.fixture(scope="module")
def half(trained: Trained) -> onnx.ModelProto:
    return build_graph(load_checkpoint(trained.checkpoint), max_batch=16, precision="fp16")


def copy_of(graph: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    return copy


def test_the_names_of_the_package_are_imported_when_used() -> None:
    for name in export.__all__:
        assert getattr(export, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        export.nothing  # noqa: B018
    code = "import sys, lipsformer.export.tensorrt.build; print('torch' in sys.modules)"  # as a build's process does
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_bundle_says_what_it_is(trained: Trained) -> None:
    manifest = read_manifest(trained.bundle)
    assert manifest.classes == trained.classes
    assert manifest.max_batch == 16
    names = ["ort-fp32.onnx", "parity.json", "parity.md", "parity.png", "parity.npz"]
    assert [file.name for file in manifest.files] == names
    assert {path.name for path in trained.bundle.iterdir()} == {*names, "manifest.json"}
    report = json.loads((trained.bundle / "parity.json").read_text())
    assert report["passed"]
    assert report["photos"] == 28  # each sample photo and its mirror image
    assert report["hard_inputs"][:2] == ["black", "white"]
    parity = manifest.graph().parity
    assert parity is not None
    assert [row["batch"] for row in parity["batches"]] == [1, 3, 16]
    assert all(row["relative_l2"] <= 1e-5 for row in parity["batches"])
    assert {name: report["files"][0][name] for name in parity} == parity
    assert len(report["files"][0]["errors"]) == 28
    assert "PASSED" in (trained.bundle / "parity.md").read_text()


def test_the_graph_takes_pixels_of_any_batch_and_one_size(graph: onnx.ModelProto) -> None:
    assert [entry.version for entry in graph.opset_import if not entry.domain] == [20]
    shape = graph.graph.input[0].type.tensor_type
    assert shape.elem_type == onnx.TensorProto.UINT8
    assert [d.dim_param or d.dim_value for d in shape.shape.dim] == ["batch", 32, 32, 3]
    for path in (Path(__file__).parents[2], Path(torch.__file__).parent):  # no source paths of the machine
        assert str(path).encode() not in graph.SerializeToString()
    assert not any(node.metadata_props for node in graph.graph.node)


def test_the_onnx_file_alone_carries_classes_and_preprocessing(trained: Trained) -> None:
    alone = load_predictor(trained.bundle / "ort-fp32.onnx")
    bundle = load_predictor(trained.bundle)
    assert alone.classes == bundle.classes
    assert alone.preprocessing == bundle.preprocessing


def export_spoiled(monkeypatch: pytest.MonkeyPatch, trained: Trained, output: Path, build: Any) -> None:
    monkeypatch.setattr("lipsformer.export.bundle.build_graph", build)
    export_bundle(trained.checkpoint, output)


def test_one_changed_weight_fails_the_gate(
    trained: Trained, graph: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(*_: Any, **__: Any) -> onnx.ModelProto:
        spoiled = copy_of(graph)
        tensor = max(spoiled.graph.initializer, key=lambda t: np.prod(t.dims) if t.data_type == FLOAT else 0)
        values = numpy_helper.to_array(tensor).copy()
        values.flat[0] += 0.5
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
        return spoiled

    with pytest.raises(
        GateError,
        match=r"ort-fp32\.onnx on \w+: parity failed, no bundle written: batch 1: relative_l2 \d",
    ):
        export_spoiled(monkeypatch, trained, tmp_path / "bundle", spoil)
    assert list(tmp_path.iterdir()) == []


def perturbed(graph: onnx.ModelProto) -> None:
    kinds = (FLOAT, onnx.TensorProto.FLOAT16)
    tensor = max(graph.graph.initializer, key=lambda t: np.prod(t.dims) if t.data_type in kinds else 0)
    values = numpy_helper.to_array(tensor).copy()
    values.flat[0] += 2
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def without_a_cast(graph: onnx.ModelProto) -> None:
    half = onnx.TensorProto.FLOAT16
    cast = next(node for node in graph.graph.node if node.op_type == "Cast" and node.attribute[0].i == half)
    for node in graph.graph.node:
        node.input[:] = [cast.input[0] if name == cast.output[0] else name for name in node.input]
    graph.graph.node.remove(cast)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (
            perturbed,
            r"ort-fp16\.onnx on \w+: parity failed, .*: batch 1: relative_l2 \S+ exceeds 0\.005",
        ),
        (without_a_cast, r"ort-fp16\.onnx: no bundle written: .*ONNX Runtime cannot load it"),
    ],
)
def test_a_spoiled_float16_graph_fails_the_gate(
    spoil: Callable[[onnx.ModelProto], None],
    told: str,
    graph: onnx.ModelProto,
    half: onnx.ModelProto,
    trained: Trained,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graphs = {"fp32": graph, "fp16": copy_of(half)}
    spoil(graphs["fp16"])
    monkeypatch.setattr("lipsformer.export.bundle.build_graph", lambda *_, precision, **__: graphs[precision])
    with pytest.raises(GateError, match=told):
        export_bundle(trained.checkpoint, tmp_path / "bundle", ExportSettings(precisions=("fp16",)))
    assert list(tmp_path.iterdir()) == []


def test_values_beyond_the_range_of_float16_fail_the_gate(trained: Trained, tmp_path: Path) -> None:
    """A CPU computes float16 in float32: without a look at the range, the bundle would only fail on a GPU."""
    checkpoint = load_checkpoint(trained.checkpoint)
    layer = checkpoint.model.layers[0].blocks[0].attn
    with torch.no_grad():  # values 30,000 times as large, and the projection makes up for it
        layer.qkv.weight[-16:] *= 30_000
        layer.qkv.bias[-16:] *= 30_000
        layer.proj.weight /= 30_000
    spoiled = tmp_path / "large.safetensors"
    save_checkpoint(
        spoiled,
        config=checkpoint.config,
        weights=checkpoint.model.state_dict(),
        classes=checkpoint.classes,
        preprocessing=checkpoint.preprocessing,
        metrics={},
    )
    told = (
        r"ort-fp16\.onnx: no bundle written: the network's values reach \d+,\d+ \('\w+'\), and float16 ends at 65,504"
    )
    with pytest.raises(GateError, match=told):
        export_bundle(spoiled, tmp_path / "bundle", ExportSettings(precisions=("fp16",)))
    assert [path.name for path in tmp_path.iterdir()] == ["large.safetensors"]
    export_bundle(spoiled, tmp_path / "bundle", ExportSettings(precisions=("fp32",)))


def test_a_frozen_batch_fails_the_gate(
    trained: Trained, graph: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The official code's trap: `int()` on a batch size bakes the batch of the example, 2 here, into the graph."""

    def freeze(*_: Any, **__: Any) -> onnx.ModelProto:
        frozen = copy_of(graph)
        shape = next(node.input[1] for node in reversed(frozen.graph.node) if node.op_type == "Reshape")
        tensor = next(tensor for tensor in frozen.graph.initializer if tensor.name == shape)
        target = numpy_helper.to_array(tensor).copy()
        assert target[0] == -1
        target[0] = 2
        tensor.CopyFrom(numpy_helper.from_array(target, shape))
        return frozen

    with pytest.raises(GateError, match=r"batch 1: .*batch 3: .*batch 16: "):
        export_spoiled(monkeypatch, trained, tmp_path / "bundle", freeze)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"precisions": ("fp31",)}, "--precision fp31: unknown; did you mean 'fp32'?"),
        ({"precisions": ()}, "--precision: give at least one of fp32, fp16, bf16, int8"),
        ({"precisions": ("fp32", "fp32")}, "--precision: fp32 is given twice"),
        ({"precisions": ("int8",)}, "--precision int8 needs --calibration DATA"),
        ({"calibration": Path()}, "--calibration is for --precision int8"),
        ({"precisions": ("fp16",), "fold": False}, "--no-fold: fp16 needs the folded network"),
        ({"max_batch": 0}, "--max-batch 0: it must be at least 1"),
        ({"parity_images": 0}, "--parity-images 0: it must be at least 1"),
        ({"workspace": 1}, "--workspace is for engines"),
        ({"workspace": 0, "trt": True}, "--workspace 0"),
        ({"hardware_compatibility": True}, "--hardware-compatibility is for --trt"),
    ],
)
def test_what_cannot_be_asked_for(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError) as refusal:
        ExportSettings(**settings)
    assert told in str(refusal.value)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (ExportSettings(trt=True), "TensorRT"),
        (ExportSettings(parity_data=Path("nothing")), "nothing: no usable images"),
        (ExportSettings(precisions=("int8",), calibration=Path("nothing")), "nothing: no usable images"),
    ],
)
def test_what_is_missing_is_told_before_the_work(
    settings: ExportSettings, told: str, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    for work in ("build_graph", "TorchRuntime"):
        monkeypatch.setattr(f"lipsformer.export.bundle.{work}", lambda *_, **__: pytest.fail("the work began"))
    with pytest.raises(InputError, match=told):
        export_bundle(trained.checkpoint, tmp_path / "bundle", settings)
    with pytest.raises(InputError, match="exists already"):
        export_bundle(trained.checkpoint, trained.bundle)
    assert list(tmp_path.iterdir()) == []


def test_limits_are_recorded_and_can_be_met_or_not(
    graph: onnx.ModelProto, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lipsformer.export.bundle.build_graph", lambda *_, **__: graph)  # once is enough
    strict = read_thresholds(["fp32.relative_l2=1e-9"])
    with pytest.raises(GateError, match=r"relative_l2 .* exceeds 1e-09"):
        export_bundle(trained.checkpoint, tmp_path / "bundle", ExportSettings(thresholds=strict, max_batch=2))
    wide = ExportSettings(thresholds=read_thresholds(["fp32.kl=0.5"]), parity_data=trained.data, parity_images=9)
    parity = export_bundle(trained.checkpoint, tmp_path / "bundle", wide).graph().parity
    assert parity is not None
    assert parity["thresholds"]["kl"] == 0.5
    assert parity["photos"] == 9
    assert parity["batches"][0]["accuracy_loss"] == 0.0  # the folders are the classes
    report = json.loads((tmp_path / "bundle" / "parity.json").read_text())
    assert report["checkpoint_accuracy"] == parity["batches"][0]["accuracy"]


def test_the_first_precision_is_the_one_that_runs(
    half: onnx.ModelProto, graph: onnx.ModelProto, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs = {"fp16": half, "fp32": graph}
    monkeypatch.setattr("lipsformer.export.bundle.build_graph", lambda *_, precision, **__: graphs[precision])
    export_bundle(trained.checkpoint, tmp_path / "bundle", ExportSettings(precisions=("fp16", "fp32")))
    assert read_manifest(tmp_path / "bundle").precisions == ("fp16", "fp32")
    assert load_predictor(tmp_path / "bundle").file.name == "ort-fp16.onnx"
    assert load_predictor(tmp_path / "bundle", precision="fp32").file.name == "ort-fp32.onnx"


@pytest.mark.slow
def test_a_killed_export_leaves_no_bundle_and_its_litter_is_swept(
    trained: Trained, tmp_path: Path, nursery: Nursery
) -> None:
    bundle, log = tmp_path / "bundle", tmp_path / "log"
    pause = np.random.default_rng(0)
    for stage in (".bundle.*.tmp", ".bundle.*.tmp/*.onnx", ".bundle.*.tmp/manifest.json"):
        process = nursery.start(["export", trained.checkpoint, "--output", bundle], log)
        while (status := nursery.wait(0.002)) is None and not [*tmp_path.glob(stage)]:
            pass
        if status is None:
            time.sleep(pause.uniform(0, 0.01))
            os.kill(process, signal.SIGKILL)
            assert nursery.wait(30) in (0, -signal.SIGKILL), log.read_text()
        if bundle.exists():  # it was whole already
            read_manifest(bundle)
            shutil.rmtree(bundle)
    export_bundle(trained.checkpoint, bundle)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "log"]


def test_wrong_height_is_refused_not_resized(trained: Trained) -> None:
    runtime = OnnxRuntime(trained.bundle / "ort-fp32.onnx", device="cpu")
    with pytest.raises(Exception, match="invalid dimensions"):
        runtime.infer(np.zeros((1, 30, 32, 3), dtype=np.uint8))
