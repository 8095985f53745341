"""When bf16 takes fp32's place: passed, possible here, and faster; otherwise stderr says why not."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from lipsformer import load_predictor
from lipsformer.bundle.manifest import BundleFile, read_manifest
from lipsformer.inference.runtimes import CUDA, OnnxRuntime, RuntimeOptions, import_onnxruntime, select
from lipsformer.system.errors import InputError
from tests.bundle.test_manifest import rewrite
from tests.support.bf16 import AMX, AVX512, NEITHER, add_bf16, needs_bf16, pretend_cpu
from tests.support.trained import Trained

pytestmark = pytest.mark.openvino

BF16 = ("ort-fp32.onnx", "bf16", "OpenVINO CPU, bf16")
FP32 = ("ort-fp32.onnx", "fp32", "CPUExecutionProvider")
MEASURED = {"cpu": "Imaginary CPU", "instructions": "amx_bf16", "threads": 2, "ratios": {"1": 1.8, "16": 2.4}}


def runs(bundle: Path, device: str = "auto", precision: str | None = None) -> tuple[str, str, str]:
    predictor = load_predictor(bundle, device, precision)
    return predictor.file.name, predictor.precision, predictor.runtime.provider


@needs_bf16
def test_it_takes_the_place_of_fp32(trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = add_bf16(trained.bundle, tmp_path / "bundle")
    assert read_manifest(bundle).precisions == ("fp32", "bf16")
    assert runs(bundle) == runs(bundle, "cpu") == runs(bundle, precision="bf16") == BF16
    assert runs(bundle, precision="fp32") == FP32
    assert capsys.readouterr().err == ""
    image = next(trained.data.rglob("*.jpg"))
    found, expected = (load_predictor(bundle, precision=name).predict([image])[0][0] for name in ("bf16", "fp32"))
    assert found.label == expected.label
    assert 0 < abs(found.score - expected.score) < 0.05


@pytest.mark.parametrize(
    ("flags", "facts", "told"),
    [
        (NEITHER, {}, "bf16 needs AMX or AVX512-BF16, and this machine's /proc/cpuinfo (Imaginary CPU) lists neither"),
        (AVX512, {}, "bf16 was measured with amx_bf16, and this CPU has avx512_bf16; export it here"),
        (AMX, {"parity": {"passed": False}}, "bf16 never passed the parity check"),
        (AMX, {"speedup": MEASURED | {"ratios": {"1": 1.8, "16": 0.9}}}, "bf16 was not faster than fp32 when it was"),
    ],
)
def test_it_is_not_passed_over_silently(
    flags: str,
    facts: dict[str, Any],
    told: str,
    trained: Trained,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bundle = add_bf16(trained.bundle, tmp_path / "bundle", **{"speedup": MEASURED, **facts})
    pretend_cpu(flags, tmp_path, monkeypatch)
    assert runs(bundle) == FP32
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(told)
    assert line.endswith(". ONNX Runtime runs ort-fp32.onnx in fp32 instead")
    assert runs(bundle, precision="fp32") == FP32
    assert capsys.readouterr().err == ""


def test_without_openvino_fp32_runs(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = add_bf16(trained.bundle, tmp_path / "bundle", speedup=MEASURED)
    pretend_cpu(AMX, tmp_path, monkeypatch)
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert runs(bundle) == FP32
    assert "pip install 'lipsformer[openvino]'. ONNX Runtime runs ort-fp32.onnx" in capsys.readouterr().err
    with pytest.raises(InputError, match="OpenVINO is not installed"):
        load_predictor(bundle, precision="bf16")


def test_who_asks_for_bf16_gets_nothing_else(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = add_bf16(trained.bundle, tmp_path / "bundle")
    with pytest.raises(InputError, match="--device cuda: bf16 runs on the CPU"):
        load_predictor(bundle, "cuda", "bf16")
    pretend_cpu(NEITHER, tmp_path, monkeypatch)
    with pytest.raises(InputError, match="bf16 needs AMX or AVX512-BF16"):
        load_predictor(bundle, precision="bf16")
    with pytest.raises(InputError, match="--precision bf16: the bundle has fp32; choose one of them, or export again"):
        load_predictor(trained.bundle, precision="bf16")


@needs_bf16
def test_slower_bf16_runs_if_asked_for(trained: Trained, tmp_path: Path) -> None:
    bundle = add_bf16(trained.bundle, tmp_path / "bundle", speedup=MEASURED | {"ratios": {"1": 0.5}})
    assert runs(bundle, precision="bf16") == BF16


def test_another_default_stays(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = add_bf16(trained.bundle, tmp_path / "bundle", speedup=MEASURED)
    shutil.copy(bundle / "ort-fp32.onnx", bundle / "ort-int8.onnx")
    facts = {"target": "ort", "precision": "int8", "parity": {"passed": True}}
    entry = vars(BundleFile.describe(bundle / "ort-int8.onnx", "onnx", **facts))
    rewrite(bundle, lambda manifest: manifest["files"].insert(0, entry))
    pretend_cpu(AMX, tmp_path, monkeypatch)
    assert runs(bundle) == ("ort-int8.onnx", "int8", "CPUExecutionProvider")
    assert capsys.readouterr().err == ""


class OnCuda(OnnxRuntime):
    """ONNX Runtime as if CUDA worked."""

    def __init__(self, model: Path, device: str = "auto", threads: int | None = None) -> None:
        super().__init__(model, "cpu", threads)
        self.provider = "CPUExecutionProvider" if device == "cpu" else CUDA


def test_cuda_goes_first(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = add_bf16(trained.bundle, tmp_path / "bundle", speedup=MEASURED)
    pretend_cpu(AMX, tmp_path, monkeypatch)
    monkeypatch.setattr(import_onnxruntime(), "get_available_providers", lambda: [CUDA])
    monkeypatch.setattr(select, "OnnxRuntime", OnCuda)
    for device in ("auto", "cuda"):
        file, runtime, fallbacks = select.open_best(bundle, read_manifest(bundle), RuntimeOptions(device=device))
        assert (file.precision, runtime.provider, fallbacks) == ("fp32", CUDA, ())
