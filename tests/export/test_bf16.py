"""Export in bf16: behind a gate that a graph can fail, measured, and refused early on machines without it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from lipsformer.bundle.manifest import OPENVINO, read_manifest
from lipsformer.export import ExportSettings, export_bundle, verify_bundle, write_triton
from lipsformer.export.parity.thresholds import THRESHOLDS
from lipsformer.system.errors import GateError, InputError
from lipsformer.system.hardware import bf16_instructions, cores
from tests.support.bf16 import AMX, NEITHER, needs_bf16, pretend_cpu
from tests.support.command import Run
from tests.support.trained import Trained

pytestmark = pytest.mark.openvino

WITH_BF16 = ExportSettings(precisions=("bf16", "fp32"), max_batch=3)


@pytest.fixture(scope="module")
def bundle(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("bf16") / "bundle"
    export_bundle(trained.checkpoint, output, WITH_BF16)
    return output


@needs_bf16
def test_one_graph_is_checked_in_both_precisions(bundle: Path) -> None:
    assert [path.name for path in bundle.glob("*.onnx")] == ["ort-fp32.onnx"]
    manifest = read_manifest(bundle)
    assert manifest.precisions == ("fp32", "bf16")
    exact, file = manifest.graph(), manifest.graph("bf16")
    assert (file.name, file.target, file.sha256) == (exact.name, OPENVINO, exact.sha256)
    assert file.parity is not None
    assert (file.parity["provider"], file.parity["thresholds"]) == ("OpenVINO CPU, bf16", THRESHOLDS["bf16"])
    assert [row["batch"] for row in file.parity["batches"]] == [1, 3]
    assert all(1e-3 < row["relative_l2"] < 5e-2 for row in file.parity["batches"])
    assert file.parity["neighbours"] == 0
    assert file.speedup is not None
    assert (file.speedup["instructions"], file.speedup["threads"]) == (bf16_instructions(), cores())
    assert list(file.speedup["ratios"]) == ["1", "3"]
    assert all(ratio > 0 for ratio in file.speedup["ratios"].values())
    assert exact.speedup is None
    assert "openvino" in manifest.versions


@needs_bf16
def test_verify_repeats_both_checks(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = verify_bundle(bundle)
    assert found.failures == []
    assert [file.provider for file in found.parity.files] == ["CPUExecutionProvider", "OpenVINO CPU, bf16"]
    assert found.hashed == len(list(bundle.iterdir())) - 1
    pretend_cpu(NEITHER, tmp_path, monkeypatch)
    (failure,) = verify_bundle(bundle).failures
    assert failure.startswith("ort-fp32.onnx cannot run here: bf16 needs AMX or AVX512-BF16")


@needs_bf16
def test_triton_gets_the_graph_once(bundle: Path, tmp_path: Path) -> None:
    assert len(write_triton(bundle, tmp_path)) == 1


@needs_bf16
def test_a_graph_that_is_right_in_float32_alone_fails_the_gate(
    trained: Trained, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = onnx.load(bundle / "ort-fp32.onnx")
    spoil(graph)
    monkeypatch.setattr("lipsformer.export.bundle.build_graph", lambda *_, **__: graph)
    export_bundle(trained.checkpoint, tmp_path / "exact", ExportSettings(max_batch=3))
    with pytest.raises(GateError, match=r"on OpenVINO CPU, bf16: parity failed, no bundle written: batch 1: relative"):
        export_bundle(trained.checkpoint, tmp_path / "bundle", WITH_BF16)
    assert [path.name for path in tmp_path.iterdir()] == ["exact"]


def spoil(graph: onnx.ModelProto, offset: float = 64.0) -> None:
    """Lift the features by an offset for the length of a matrix product, whose inputs bfloat16 rounds to 8 bits."""
    nodes = graph.graph.node
    (features,) = (value for value in graph.graph.output if value.name == "features")
    channels = features.type.tensor_type.shape.dim[1].dim_value
    (at,) = (index for index, node in enumerate(nodes) if "features" in node.output)
    nodes[at].output[0] = "exact"
    values = {"up": np.float32([offset]), "same": np.eye(channels, dtype=np.float32), "down": np.float32([-offset])}
    graph.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in values.items())
    steps = [("Add", "exact", "up", "high"), ("MatMul", "high", "same", "kept"), ("Add", "kept", "down", "features")]
    for place, (kind, *inputs, output) in enumerate(steps, at + 1):
        nodes.insert(place, helper.make_node(kind, inputs, [output]))


@pytest.mark.parametrize("missing", ["instructions", "package"])
def test_it_is_refused_before_any_work(missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = {
        "instructions": r"bf16 needs AMX or AVX512-BF16, and .* lists neither; use fp32",
        "package": r"OpenVINO is not installed; pip install 'lipsformer\[openvino\]'",
    }
    pretend_cpu(NEITHER if missing == "instructions" else AMX, tmp_path, monkeypatch)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(InputError, match=told[missing]):
        export_bundle(tmp_path / "missing.safetensors", tmp_path / "bundle", WITH_BF16)


def test_it_needs_the_graph_of_fp32() -> None:
    with pytest.raises(InputError, match="another way to run the fp32 graph; write --precision fp32,bf16"):
        ExportSettings(precisions=("bf16",))


@needs_bf16
def test_on_the_command_line(run: Run, trained: Trained, tmp_path: Path) -> None:
    bundle, image = tmp_path / "bundle", next(trained.data.rglob("*.jpg"))
    options = ["--precision", "fp32,bf16", "--max-batch", 2]
    status, out, err = run("export", trained.checkpoint, "--output", bundle, *options)
    assert status == 0, err
    assert "| ort-fp32.onnx | OpenVINO CPU, bf16 |" in out
    assert "speed of bf16, as a multiple of fp32's in ONNX Runtime: " in err
    for command in (("predict", bundle, image), ("eval", bundle, trained.data)):
        status, out, err = run(*command, "--precision", "bf16", "--json")
        assert status == 0, err
    assert json.loads(out)["provider"] == "OpenVINO CPU, bf16"
    status, out, err = run("benchmark", bundle, "--batch", "1", "--rounds", 1, "--seconds", 0, "--json")
    assert status == 0, err
    subjects = json.loads(out)["subjects"]
    assert [(subject["provider"], subject["precision"]) for subject in subjects] == [
        ("CPUExecutionProvider", "fp32"),
        ("OpenVINO CPU, bf16", "bf16"),
    ]
    assert subjects[1]["label"] == f"{bundle}/ort-fp32.onnx in bf16"
    assert subjects[0]["file_bytes"] == subjects[1]["file_bytes"]
    assert "openvino     runs bf16 (" in run("doctor")[1]
