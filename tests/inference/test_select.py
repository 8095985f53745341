"""Which file of a bundle runs: the engine where it fits, else a graph, never silently; and how engines get there."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from lipsformer import load_predictor
from lipsformer.bundle.manifest import BundleFile, read_manifest
from lipsformer.export import ExportSettings, export_bundle, verify_bundle
from lipsformer.inference.runtimes import OnnxRuntime, Outputs
from lipsformer.system.atomic import sha256_of
from lipsformer.system.errors import GateError, InputError
from tests.bundle.test_manifest import rewrite
from tests.support.trained import Trained

ENGINE = "tensorrt-fp32.engine"
BUILT = {"flavour": "tensorrt", "version": "11.4"}


class Engine:
    """A stand-in for TensorRtRuntime that answers as the graph for ONNX Runtime does, times `factor`."""

    factor = 1.0
    misfit: str | None = None

    def __init__(self, engine: Path, file: BundleFile) -> None:
        assert file.kind == "engine"
        assert sha256_of(engine) == file.sha256
        if self.misfit is not None:
            raise InputError(f"{engine}: {self.misfit}")
        self.graph = OnnxRuntime(engine.parent / "ort-fp32.onnx", "cpu")
        self.image_size, self.outputs, self.channels = self.graph.image_size, self.graph.outputs, self.graph.channels
        self.provider = "TensorRT 11.4 on a GPU"

    def infer(self, pixels: np.ndarray) -> Outputs:
        logits, features = self.graph.infer(pixels)
        return Outputs(logits * np.float32(self.factor), features)


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("lipsformer.inference.runtimes.tensorrt", "lipsformer.export.bundle"):
        monkeypatch.setattr(f"{place}.TensorRtRuntime", Engine)


@pytest.fixture
def with_engine(trained: Trained, tmp_path: Path) -> Callable[..., Path]:
    def make(**parity: Any) -> Path:
        bundle = shutil.copytree(trained.bundle, tmp_path / "bundle")
        (bundle / ENGINE).write_bytes(b"engine")
        facts = {"target": "tensorrt", "precision": "fp32", "parity": {"passed": True, **parity}, "built": BUILT}
        entry = vars(BundleFile.describe(bundle / ENGINE, "engine", **facts))
        rewrite(bundle, lambda m: m["files"].insert(1, entry))
        return bundle

    return make


def test_an_engine_that_fits_goes_first(with_engine: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    bundle = with_engine()
    for device in ("auto", "cuda"):
        predictor = load_predictor(bundle, device)
        assert (predictor.file.name, predictor.precision) == (ENGINE, "fp32")
        assert predictor.runtime.provider == "TensorRT 11.4 on a GPU"
    assert capsys.readouterr().err == ""
    assert load_predictor(bundle, "cpu").file.name == "ort-fp32.onnx"
    alone = load_predictor(bundle / ENGINE)
    assert alone.classes == predictor.classes
    assert alone.max_batch == 16
    with pytest.raises(InputError, match=r"--device cpu: .* is an engine and runs on a GPU"):
        load_predictor(bundle / ENGINE, "cpu")


@pytest.mark.parametrize(
    ("misfit", "parity", "told"),
    [
        (
            "built for sm90, here is sm80",
            {},
            "built for sm90, here is sm80. Until then ONNX Runtime runs ort-fp32.onnx",
        ),
        (
            None,
            {"passed": False},
            "never passed the parity check, because it could not run where it was exported. "
            "Until then ONNX Runtime runs ort-fp32.onnx",
        ),
    ],
)
def test_an_engine_is_not_passed_over_silently(
    misfit: str | None,
    parity: dict[str, Any],
    told: str,
    with_engine: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Engine, "misfit", misfit)
    bundle = with_engine(**parity)
    predictor = load_predictor(bundle)
    assert predictor.file.name == "ort-fp32.onnx"
    assert predictor.runtime.provider == "CPUExecutionProvider"
    assert capsys.readouterr().err == f"{bundle / ENGINE}: {told}\n"
    with pytest.raises(InputError, match="--device cuda"):
        load_predictor(bundle, "cuda")
    capsys.readouterr()
    load_predictor(bundle, "cpu")
    assert capsys.readouterr().err == ""


def test_a_precision_is_chosen_or_refused(with_engine: Callable[..., Path], trained: Trained) -> None:
    bundle = with_engine()
    shutil.copy(bundle / "ort-fp32.onnx", bundle / "ort-int8.onnx")
    facts = {"target": "ort", "precision": "int8", "parity": {"passed": True}}
    entry = vars(BundleFile.describe(bundle / "ort-int8.onnx", "onnx", **facts))
    rewrite(bundle, lambda m: m["files"].append(entry))
    assert load_predictor(bundle).precision == "fp32"
    assert load_predictor(bundle, precision="int8").file.name == "ort-int8.onnx"  # the engine is of another precision
    with pytest.raises(InputError, match="--precision fp16: the bundle has fp32, int8"):
        load_predictor(bundle, precision="fp16")
    with pytest.raises(InputError, match="--precision fp32: only a bundle has precisions"):
        load_predictor(trained.checkpoint, precision="fp32")


def test_verify_runs_engines_and_names_those_that_cannot(
    with_engine: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = with_engine()
    found = verify_bundle(bundle)
    assert found.failures == []
    assert [file.provider for file in found.parity.files] == ["CPUExecutionProvider", "TensorRT 11.4 on a GPU"]
    monkeypatch.setattr(Engine, "factor", 1.1)
    assert verify_bundle(bundle).failures[0].startswith(f"{ENGINE} on TensorRT 11.4 on a GPU: batch 1: relative_l2 0.1")
    monkeypatch.setattr(Engine, "misfit", "needs a GPU; build it there")
    found = verify_bundle(bundle)
    assert found.failures == [f"{ENGINE} cannot run here: needs a GPU; build it there"]
    assert verify_bundle(bundle, device="cpu").failures == []


def export_with_engine(trained: Trained, output: Path, monkeypatch: pytest.MonkeyPatch, misfit: str | None) -> None:
    def build(graph: Path, output: Path, **facts: Any) -> dict[str, Any]:
        assert graph.name == "ort-fp32.onnx"
        assert graph.is_file()
        output.write_bytes(b"engine")
        return {**facts, "version": "11.4"}

    for name in ("load_tensorrt", "find_gpu"):
        monkeypatch.setattr(f"lipsformer.export.settings.{name}", lambda *_: None)
    graph = onnx.load(trained.bundle / "ort-fp32.onnx")
    monkeypatch.setattr("lipsformer.export.bundle.build_graph", lambda *_, **__: graph)  # once is enough
    monkeypatch.setattr("lipsformer.export.bundle.build_engine", build)
    monkeypatch.setattr("lipsformer.export.bundle.engine_fits", lambda _: misfit)
    export_bundle(
        trained.checkpoint, output, ExportSettings(trt=misfit is None, trt_rtx=misfit is not None, max_batch=3)
    )


def test_an_engine_is_built_and_checked(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export_with_engine(trained, tmp_path / "bundle", monkeypatch, None)
    manifest = read_manifest(tmp_path / "bundle")
    kinds = [(file.name, file.kind, (file.parity or {})["passed"]) for file in manifest.files if file.kind != "report"]
    assert kinds == [("ort-fp32.onnx", "onnx", True), (ENGINE, "engine", True)]
    assert load_predictor(tmp_path / "bundle").file.name == ENGINE
    monkeypatch.setattr(Engine, "factor", 1.1)
    with pytest.raises(
        GateError,
        match=rf"{re.escape(ENGINE)} on TensorRT .*: parity failed, no bundle written: batch 1: relative_l2",
    ):
        export_with_engine(trained, tmp_path / "other", monkeypatch, None)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_an_engine_that_cannot_run_here_is_kept_as_unchecked(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    export_with_engine(trained, tmp_path / "bundle", monkeypatch, "no GPU here")
    assert "tensorrt-rtx-fp32.engine: built, not checked: no GPU here" in capsys.readouterr().err
    (engine,) = read_manifest(tmp_path / "bundle").engines("fp32")
    assert engine.parity == {"passed": False, "reason": "no GPU here"}
    assert load_predictor(tmp_path / "bundle").file.name == "ort-fp32.onnx"
