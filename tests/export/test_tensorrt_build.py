"""Engine builds: full TensorRT by a stand-in, TensorRT for RTX itself, which parses and builds without a GPU."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from lipsformer.export.tensorrt.build import build_engine, check_with_rtx
from lipsformer.export.tensorrt.build_process import EngineBuild, EngineRequest, precision_of
from lipsformer.inference.runtimes import tensorrt_library as nvidia
from lipsformer.inference.runtimes.tensorrt_compat import PLATFORM, engine_fits
from lipsformer.system.atomic import sha256_of
from lipsformer.system.errors import GateError, InputError
from tests.support.models import fake_tensorrt as fake

TESTS = Path(__file__).parents[1]
CAST = helper.make_node("Cast", ["pixels"], ["floats"], to=TensorProto.FLOAT, name="cast")
FLATTEN = helper.make_node("Flatten", ["floats"], ["flat"], name="flatten")
GEMM = helper.make_node("Gemm", ["flat", "weight"], ["logits"], name="head")
WEIGHT = numpy_helper.from_array(np.ones((192, 5), np.float32), "weight")


def write_graph(path: Path, nodes: list[Any], weights: list[Any], name: str = "pixels") -> Path:
    pixels = helper.make_tensor_value_info(name, TensorProto.UINT8, ["batch", 8, 8, 3])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "graph", [pixels], [logits], weights)
    sets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=sets, ir_version=10), path)
    return path


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """One matrix, in a graph as an export has it."""
    return write_graph(tmp_path / "tensorrt-fp32.onnx", [CAST, FLATTEN, GEMM], [WEIGHT])


@pytest.fixture
def build(graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Builds in this process, with a stand-in for TensorRT and for the GPU: the facts, the notes and the engine."""
    monkeypatch.setattr(fake, "BEHAVIOR", {})
    monkeypatch.setenv("LIPSFORMER_CACHE", str(tmp_path / "cache"))
    fake.CALLS.clear()
    nvidia.log_of.cache_clear()
    for module in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, module, fake)
    monkeypatch.setattr(nvidia, "_driver_cuda", lambda: (13, 0))
    for change in fake.seen_gpu():
        monkeypatch.setattr(*change)

    def built(**options: Any) -> tuple[dict[str, Any], list[str], dict[str, Any]]:
        output = tmp_path / "built.engine"
        request = EngineRequest(**{"graph": graph, "output": output, "max_batch": 6, "flavour": "tensorrt", **options})
        process = EngineBuild(request)
        process.parse()
        return process.build(), process.take_notes(), json.loads(output.read_bytes())

    return built


def test_the_engine_and_what_is_said_of_it(build: Any, graph: Path) -> None:
    facts, _, engine = build(workspace=1 << 30)
    assert facts == {
        "flavour": "tensorrt",
        "version": fake.__version__,
        "platform": PLATFORM,
        "gpu": "NVIDIA H100",
        "compute_capability": "9.0",
        "cuda": "13.0",
        "hardware_compatibility": False,
        "min_batch": 1,
        "opt_batch": 6,
        "max_batch": 6,
        "precision": "fp32",
        "onnx_sha256": sha256_of(graph),
    }
    assert engine_fits(facts) is None
    assert engine["profile"] == ["pixels", [1, 8, 8, 3], [6, 8, 8, 3], [6, 8, 8, 3]]
    assert engine["workspace"] == 1 << 30
    assert engine["flags"] == []  # not even TF32
    assert engine["hardware"] == "NONE"


def test_the_gpu_is_looked_for_before_the_builder_is_made(build: Any) -> None:
    build()
    assert fake.CALLS == ["probe", "Builder", "parse", "build"]


def test_an_engine_for_rtx_allocates_nothing_while_it_runs(build: Any) -> None:
    _, _, engine = build(flavour="tensorrt-rtx")
    assert engine["flags"] == ["REQUIRE_USER_ALLOCATION"]  # a CUDA graph cannot capture an allocation


def test_hardware_compatibility_is_asked_of_tensorrt(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, major in (("NVIDIA H100", 9), ("NVIDIA RTX 5090", 12)):
        for change in fake.seen_gpu(name, major, 0):
            monkeypatch.setattr(*change)
        facts, _, engine = build(hardware_compatibility=True)
        assert engine["hardware"] == "AMPERE_PLUS"
        assert facts["hardware_compatibility"] is True
    for change in fake.seen_gpu("NVIDIA T4", 7, 5):
        monkeypatch.setattr(*change)
    with pytest.raises(InputError, match="older than Ampere"):
        build(hardware_compatibility=True)


def test_timings_are_kept_and_a_broken_cache_is_passed_over(build: Any, tmp_path: Path) -> None:
    place = tmp_path / "cache" / "tensorrt" / "timings-11.4.0.106-NVIDIA-H100.cache"
    _, notes, engine = build()
    assert (engine["timings"], place.read_bytes(), notes) == ("", b"timings", [])
    assert build()[2]["timings"] == "timings"
    for broken in (b"rubbish", b"others"):
        place.write_bytes(broken)
        _, notes, engine = build()
        assert engine["timings"] == ""
        assert notes == [f"{place}: not a timing cache of this TensorRT and GPU; measuring again"]
        assert place.read_bytes() == b"timings"
    own = tmp_path / "own.cache"
    build(timing_cache=own)
    assert own.read_bytes() == b"timings"


def test_a_cache_that_cannot_be_written_costs_a_note(build: Any, tmp_path: Path) -> None:
    facts, notes, _ = build(timing_cache=tmp_path)
    assert "timing cache not kept" in notes[0]
    assert facts["max_batch"] == 6


@pytest.mark.parametrize(
    ("behavior", "why"),
    [
        ({"parse": "no such operator"}, r"cannot parse node 'gelu_7' \(Gelu\): no such operator"),
        ({"build": "Myelin error"}, r"cannot build it: Myelin error"),
        ({"build": "no tactics within workspace limit"}, r"lacks memory to build it: .*raise --workspace"),
        ({"build": "CUDA out of memory"}, r"lacks memory to build it: CUDA out of memory; .*free GPU memory"),
    ],
)
def test_what_tensorrt_refuses(
    build: Any, behavior: dict[str, str], why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake, "BEHAVIOR", behavior)
    with pytest.raises(GateError, match=rf"^TensorRT 11.4.0.106 .*{why}"):
        build()
    assert not (tmp_path / "built.engine").exists()


def test_a_graph_that_no_export_wrote_is_refused(build: Any, graph: Path) -> None:
    other = helper.make_node("Cast", ["image"], ["floats"], to=TensorProto.FLOAT)
    write_graph(graph, [other, FLATTEN, GEMM], [WEIGHT], name="image")
    with pytest.raises(GateError, match="not a graph that `lipsformer export` wrote"):
        build()


@pytest.fixture
def other_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Gives the building process a `tensorrt` that behaves as told."""
    shutil.copy(TESTS / "support" / "models" / "fake_tensorrt.py", tmp_path / "tensorrt.py")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return lambda **behavior: monkeypatch.setenv("FAKE_TENSORRT", json.dumps(behavior))


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="TensorRT is installed")
def test_without_tensorrt_the_extra_is_named(graph: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^TensorRT is not installed; pip install 'lipsformer\[trt\]'$"):
        build_engine(graph, tmp_path / "x.engine", max_batch=2)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_tensorrt_is_not_touched(graph: Path, tmp_path: Path, other_process: Any) -> None:
    other_process(abort=True)  # as the real one does
    with pytest.raises(InputError, match=r"^TensorRT needs a GPU"):
        build_engine(graph, tmp_path / "x.engine", max_batch=2)


@pytest.mark.slow
def test_a_crash_costs_the_engine_and_not_the_export(graph: Path, tmp_path: Path, other_process: Any) -> None:
    other_process(abort=True, gpu=True)
    with pytest.raises(GateError, match=r"tensorrt-fp32.onnx: TensorRT crashed while it started \(SIGABRT"):
        build_engine(graph, tmp_path / "x.engine", max_batch=2)
    assert not (tmp_path / "x.engine").exists()


@pytest.mark.slow
def test_an_engine_comes_out_of_the_other_process(
    graph: Path, tmp_path: Path, other_process: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIPSFORMER_CACHE", str(tmp_path / "cache"))
    other_process(gpu=True)
    built = build_engine(graph, tmp_path / "x.engine", max_batch=2)
    assert (built["gpu"], built["max_batch"]) == ("NVIDIA H100", 2)
    assert json.loads((tmp_path / "x.engine").read_bytes())["max_batch"] == 2


def test_rtx_builds_without_a_gpu(graph: Path, tmp_path: Path) -> None:
    built = check_with_rtx(graph, 4)
    assert (built["flavour"], built["gpu"], built["hardware_compatibility"]) == ("tensorrt-rtx", None, True)
    assert (built["max_batch"], built["onnx_sha256"]) == (4, sha256_of(graph))
    assert list(tmp_path.iterdir()) == [graph]
    engine = tmp_path / "tensorrt-rtx-fp32.engine"
    assert build_engine(graph, engine, max_batch=4, flavour="tensorrt-rtx") == built
    assert engine.stat().st_size > 1000


def test_rtx_tells_what_it_lacks_memory_for(graph: Path, tmp_path: Path) -> None:
    with pytest.raises(GateError, match=r"lacks memory to build it: .*workspace"):
        build_engine(graph, tmp_path / "x.engine", max_batch=4, flavour="tensorrt-rtx", workspace=1)


# What is fast in ONNX Runtime, and refused here. Attention takes the process down.
SHAPE = numpy_helper.from_array(np.array([-1, 1, 12, 16], np.int64), "shape")
RESHAPE = helper.make_node("Reshape", ["floats", "shape"], ["heads"])
ATTENTION = helper.make_node("Attention", ["heads", "heads", "heads"], ["logits"], name="attention")
FUSED = helper.make_node("FusedGelu", ["floats"], ["logits"], domain="com.microsoft", name="fused")
SCALE = numpy_helper.from_array(np.float32(0.1), "scale")
ZERO = numpy_helper.from_array(np.uint8(128), "zero")
QUANTIZE = helper.make_node("QuantizeLinear", ["floats", "scale", "zero"], ["logits"], name="quantize")
BIAS = numpy_helper.from_array(np.ones(5, np.int32), "bias")
DEQUANTIZE = helper.make_node("DequantizeLinear", ["bias", "scale"], ["offset"], name="dequantize")
BIASED = helper.make_node("Gemm", ["flat", "weight", "offset"], ["logits"], name="head")


@pytest.mark.parametrize(
    ("nodes", "weights", "why"),
    [
        pytest.param([CAST, RESHAPE, ATTENTION], [SHAPE], r"crashed while it built.*\(Attention\)", id="attention"),
        pytest.param([CAST, FUSED], [], r"cannot parse node 'fused'.*\(FusedGelu\)", id="com.microsoft"),
        pytest.param([CAST, QUANTIZE], [SCALE, ZERO], r"'quantize'.*\(QuantizeLinear\)", id="uint8 activations"),
        pytest.param(
            [CAST, FLATTEN, DEQUANTIZE, BIASED],
            [SCALE, BIAS, WEIGHT],
            r"'dequantize'.*type Int32.*\(DequantizeLinear\)",
            id="int32 biases",
        ),
    ],
)
def test_a_graph_for_onnx_runtime_is_refused(nodes: list[Any], weights: list[Any], why: str, tmp_path: Path) -> None:
    path = write_graph(tmp_path / "ort-fp32.onnx", nodes, weights)
    with pytest.raises(GateError, match=why) as refused:
        check_with_rtx(path, 4)
    assert "it was made for ONNX Runtime" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_what_is_no_graph_at_all_is_refused(tmp_path: Path) -> None:
    (path := tmp_path / "tensorrt-fp32.onnx").write_bytes(b"not a graph")
    with pytest.raises(GateError, match=r"cannot parse it: .*; omit --trt"):
        check_with_rtx(path, 4)


def test_precision_is_read_from_the_graph(graph: Path, tmp_path: Path) -> None:
    half = numpy_helper.from_array(np.ones((192, 5), np.float16), "weight")
    assert precision_of(onnx.load(graph)) == "fp32"
    assert precision_of(onnx.load(write_graph(tmp_path / "half.onnx", [CAST, FLATTEN, GEMM], [half]))) == "fp16"
    assert precision_of(onnx.load(write_graph(tmp_path / "int8.onnx", [CAST, QUANTIZE], [SCALE, ZERO]))) == "int8"


RTX_ALONE = (
    "ComputeCapability",
    "DynamicShapesKernelSpecializationStrategy",
    "REQUIRE_USER_ALLOCATION",
    "dynamic_shapes_kernel_specialization_",
)


def unknown(body: list[ast.stmt], owner: Any) -> list[str]:
    """The names and the arguments that a stub promises and `owner` does not have."""
    wrong = []
    for statement in body:
        match statement:
            case (
                ast.ClassDef(name=name)
                | ast.AnnAssign(target=ast.Name(id=name))
                | ast.Assign(targets=[ast.Name(id=name)])
            ):
                wrong += [] if hasattr(owner, name) else [name]
            case ast.FunctionDef(name=name, args=args) if not name.startswith("__"):
                signature = str(getattr(getattr(owner, name, None), "__doc__", ""))
                wrong += [f"{name}({a.arg})" for a in args.args[1:] if f"{a.arg}:" not in signature]
        if isinstance(statement, ast.ClassDef) and hasattr(owner, statement.name):
            wrong += [f"{statement.name}.{name}" for name in unknown(statement.body, getattr(owner, statement.name))]
    return wrong


@pytest.mark.parametrize("flavour", ["tensorrt_rtx", "tensorrt"])
def test_the_types_that_mypy_checks_are_those_of_the_library(flavour: str) -> None:
    library = pytest.importorskip(flavour)
    stub = ast.parse((TESTS.parent / "typings" / "tensorrt" / "__init__.pyi").read_text())
    wrong = unknown(stub.body, library)
    assert [name for name in wrong if flavour == "tensorrt_rtx" or not any(rtx in name for rtx in RTX_ALONE)] == []
    bite = "class Builder:\n    def build_engine(self, network: int): ...\nclass ILogger:\n    level: int"
    assert unknown(ast.parse(bite).body, library) == ["Builder.build_engine(network)", "ILogger.level"]
