"""Engines at run time: what is asked before anything is touched, what is refused, and the order of the calls.

TensorRT and the GPU are stand-ins here (`fake_tensorrt`); `test_tensorrt_gpu` runs the real ones where there is a GPU.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lipsformer.bundle.manifest import BundleFile
from lipsformer.inference.runtimes import tensorrt as trt
from lipsformer.inference.runtimes import tensorrt_library as nvidia
from lipsformer.inference.runtimes.tensorrt import TensorRtRuntime
from lipsformer.inference.runtimes.tensorrt_compat import PLATFORM, engine_fits
from lipsformer.inference.runtimes.tensorrt_library import reason
from lipsformer.system.errors import GateError, InputError, LipsFormerError
from tests.support.models import fake_tensorrt as fake

BUILT: dict[str, Any] = {
    "flavour": "tensorrt",
    "version": fake.__version__,
    "platform": PLATFORM,
    "gpu": "NVIDIA H100",
    "compute_capability": "9.0",
    "hardware_compatibility": False,
}
ENGINE = {"max_batch": 4, "size": 8, "outputs": 5, "channels": 3}
Open = Callable[..., TensorRtRuntime]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with both flavours of TensorRT and a GPU."""
    monkeypatch.setattr(fake, "BEHAVIOR", {})
    fake.CALLS.clear()
    nvidia.log_of.cache_clear()
    for module in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, module, fake)
    for change in fake.seen_gpu():
        monkeypatch.setattr(*change)
    monkeypatch.setattr(nvidia, "_driver_cuda", lambda: (13, 0))
    monkeypatch.setattr(trt, "_device", lambda: torch.device("cpu"))


@pytest.fixture
def open_engine(machine: None, tmp_path: Path) -> Open:
    def opened(engine: dict[str, Any] = ENGINE, sha256: str | None = None, **built: Any) -> TensorRtRuntime:
        path = tmp_path / "tensorrt-fp32.engine"
        path.write_bytes(content := json.dumps(engine).encode())
        file = BundleFile(
            name=path.name,
            kind="engine",
            sha256=sha256 or hashlib.sha256(content).hexdigest(),
            size=len(content),
            target="tensorrt",
            precision="fp32",
            parity={},
            built={**BUILT, **built},
        )
        return TensorRtRuntime(path, file)

    return opened


def images(count: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(count).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)


def expected(pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return (pixels.reshape(len(pixels), -1).mean(axis=1, keepdims=True) + np.arange(5)).astype(np.float32)


def test_an_engine_that_fits_runs_and_says_where(open_engine: Open) -> None:
    runtime = open_engine()
    assert runtime.provider == "TensorRT 11.4.0.106 on NVIDIA H100"
    assert (runtime.max_batch, runtime.image_size, runtime.outputs, runtime.channels) == (4, 8, 5, 3)
    for count in (1, 3, 4, 3, 1, 3):
        pixels = images(count)
        logits, features = runtime.infer(pixels)
        assert features is not None
        assert (logits.dtype, features.dtype, features.shape) == (np.float32, np.float32, (count, 3))
        np.testing.assert_allclose(logits, expected(pixels), rtol=1e-6)
        np.testing.assert_allclose(features, 2 * expected(pixels)[:, :3], rtol=1e-6)


def test_an_engine_of_an_older_bundle_gives_no_features(open_engine: Open) -> None:
    runtime = open_engine({"max_batch": 4, "size": 8, "outputs": 5})
    assert runtime.channels is None
    logits, features = runtime.infer(pixels := images(2))
    assert features is None
    np.testing.assert_allclose(logits, expected(pixels), rtol=1e-6)


def test_answers_stay_when_the_next_batch_comes(open_engine: Open) -> None:
    runtime = open_engine()
    first = runtime.infer(images(2)).logits
    kept = first.copy()
    runtime.infer(images(3)[::-1])  # a view backwards, too
    np.testing.assert_array_equal(first, kept)


def test_the_gpu_is_looked_for_before_tensorrt_is_touched(open_engine: Open) -> None:
    open_engine()
    assert fake.CALLS.index("probe") < fake.CALLS.index("Runtime") < fake.CALLS.index("deserialize")


def test_a_batch_size_is_run_then_captured_then_replayed(open_engine: Open) -> None:
    runtime = open_engine()
    fake.CALLS.clear()
    runtime.infer(images(2))
    assert fake.CALLS == ["context", "shape 2", "run", "captured", "wait"]
    fake.CALLS.clear()
    runtime.infer(images(2))
    assert fake.CALLS == ["replay", "wait"]
    fake.CALLS.clear()
    runtime.infer(images(3))  # a context of its own
    assert fake.CALLS == ["context", "shape 3", "run", "captured", "wait"]


def test_no_more_graphs_than_the_limit(open_engine: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trt, "MAX_GRAPHS", 1)
    runtime = open_engine()
    runtime.infer(images(2))
    for _ in range(2):
        fake.CALLS.clear()
        np.testing.assert_allclose(runtime.infer(pixels := images(4)).logits, expected(pixels), rtol=1e-6)
        assert fake.CALLS == ["shape 4", "run", "wait"]


def test_a_failed_capture_is_told_once_and_batches_go_on(
    open_engine: Open, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(fake.BEHAVIOR, "capture", True)
    runtime = open_engine()
    for count in (2, 2, 3):
        np.testing.assert_allclose(runtime.infer(pixels := images(count)).logits, expected(pixels), rtol=1e-6)
    assert capsys.readouterr().err.count("no CUDA graphs") == 1
    assert fake.CALLS.count("captured") == 1


def test_kernels_for_rtx_are_made_before_a_graph_freezes_them(
    open_engine: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    for change in fake.seen_gpu("a card", 8, 9):
        monkeypatch.setattr(*change)
    runtime = open_engine(flavour="tensorrt-rtx", hardware_compatibility=True)
    assert runtime.provider == "TensorRT for RTX 11.4.0.106 on a card"
    assert "context EAGER" in fake.CALLS


@pytest.mark.parametrize(
    "pixels",
    [
        pytest.param(np.zeros((0, 8, 8, 3), np.uint8), id="none"),
        pytest.param(np.zeros((5, 8, 8, 3), np.uint8), id="more than the profile"),
        pytest.param(np.zeros((1, 9, 8, 3), np.uint8), id="another size"),
        pytest.param(np.zeros((1, 3, 8, 8), np.uint8), id="channels first"),
        pytest.param(np.zeros((1, 8, 8, 3), np.float32), id="floats"),
        pytest.param(np.zeros((8, 8, 3), np.uint8), id="no batch"),
    ],
)
def test_other_pixels_are_refused(open_engine: Open, pixels: np.ndarray[Any, Any]) -> None:
    runtime = open_engine()
    fake.CALLS.clear()
    with pytest.raises(InputError, match="takes 1 to 4 uint8 images of 8x8x3"):
        runtime.infer(pixels)
    assert fake.CALLS == []


def test_threads_take_turns(open_engine: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake.Stream, "synchronize", lambda stream: time.sleep(0.001))  # others come in between
    runtime = open_engine()
    wrong: list[int] = []

    def ask(seed: int) -> None:
        for step in range(20):
            pixels = images(1 + (seed + step) % 4)
            if not np.allclose(runtime.infer(pixels).logits, expected(pixels)):
                wrong.append(seed)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_changed_file_is_never_loaded(open_engine: Open) -> None:
    with pytest.raises(GateError, match="SHA-256 is not the manifest's"):
        open_engine(sha256="0" * 64)
    assert "deserialize" not in fake.CALLS


def test_what_tensorrt_refuses_to_load_is_told_with_its_reason(
    open_engine: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(fake.BEHAVIOR, "deserialize", "Version tag does not match")
    with pytest.raises(InputError, match=r"cannot load it \(Version tag does not match\); build it on this machine"):
        open_engine()


def test_an_engine_of_another_graph_is_refused(open_engine: Open) -> None:
    with pytest.raises(InputError, match="not an engine of `lipsformer export`"):
        open_engine({**ENGINE, "input": "images"})


def test_a_failed_run_is_one_line(open_engine: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = open_engine()
    monkeypatch.setitem(fake.BEHAVIOR, "run", "x")
    with pytest.raises(LipsFormerError, match="TensorRT failed to run"):
        runtime.infer(images(1))


@pytest.mark.parametrize(
    ("built", "why"),
    [
        ({"version": "10.13.0"}, r"built by TensorRT 10\.13\.0, here is 11\.4\.0\.106; build it on this machine"),
        ({"compute_capability": "8.9", "gpu": "NVIDIA L4"}, r"built for NVIDIA L4 \(8\.9\), here is NVIDIA H100 \(9"),
        ({"platform": "win32-amd64"}, r"built on win32-amd64, here is"),
        ({"flavour": "openvino"}, r"built by 'openvino', which is unknown"),
        ({"flavour": None}, r"which is unknown"),
        ({"flavour": "tensorrt-rtx"}, r"TensorRT for RTX 11.4.0.106 does not support NVIDIA H100; .*--trt$"),
    ],
)
def test_a_foreign_engine_is_refused_untouched(open_engine: Open, built: dict[str, Any], why: str) -> None:
    with pytest.raises(InputError, match=why):
        open_engine(**built)
    assert "Runtime" not in fake.CALLS


@pytest.mark.parametrize(
    ("major", "minor", "built", "fits"),
    [
        (9, 0, {}, True),
        (8, 9, {}, False),
        (8, 9, {"hardware_compatibility": True}, True),
        (12, 0, {"hardware_compatibility": True}, True),
        (7, 5, {"hardware_compatibility": True}, False),
        (8, 9, {"hardware_compatibility": True, "flavour": "tensorrt-rtx"}, True),
        (13, 0, {"hardware_compatibility": True, "flavour": "tensorrt-rtx"}, True),
        (7, 5, {"hardware_compatibility": True, "flavour": "tensorrt-rtx"}, False),
    ],
)
def test_which_gpus_an_engine_fits(
    machine: None, monkeypatch: pytest.MonkeyPatch, major: int, minor: int, built: dict[str, Any], fits: bool
) -> None:
    for change in fake.seen_gpu("a card", major, minor):
        monkeypatch.setattr(*change)
    assert (engine_fits({**BUILT, **built}) is None) == fits


def test_without_the_library_the_extra_is_named(machine: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert engine_fits(BUILT) == "TensorRT is not installed; pip install 'lipsformer[trt]'"


def _raising(message: str) -> Callable[[], None]:
    def init() -> None:
        raise RuntimeError(message)

    return init


@pytest.mark.parametrize(
    ("place", "name", "value", "why"),
    [
        (torch.version, "cuda", None, "built without CUDA; install PyTorch's CUDA build"),
        (torch.cuda, "init", _raising("The NVIDIA driver on your system is too old (found version 11040)"), "too old"),
        (torch.cuda, "device_count", lambda: 0, "none is visible"),
        (nvidia, "_driver_cuda", lambda: (12, 4), r"for CUDA 13, the driver runs CUDA 12\.4: update the driver"),
    ],
)
def test_without_a_usable_gpu_the_reason_is_told(
    machine: None, monkeypatch: pytest.MonkeyPatch, place: Any, name: str, value: Any, why: str
) -> None:
    monkeypatch.setattr(nvidia, "_cuda_of", lambda flavour: 13)
    assert engine_fits(BUILT) is None
    monkeypatch.setattr(place, name, value)
    assert engine_fits(BUILT) is not None
    with pytest.raises(InputError, match=why):
        nvidia.find_gpu("tensorrt")


def test_the_telling_line_is_found_among_tensorrts_messages() -> None:
    noise = "[checkMacros.cpp::catchCudaError::250] Error Code 1: Cuda Runtime (cudaError 35)"
    told = "dqb: input has type Int32. In checkType at /_src/optimizer/common/nodeBase.cpp:456"
    assert reason([noise, f"Invalid Node - dqb\n{told}"]) == "dqb: input has type Int32."
    assert reason([noise]) == noise
    assert reason([]) == "no reason given"


@pytest.mark.usefixtures("machine")
def test_doctor_tells_what_engines_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    from lipsformer.cli import doctor

    monkeypatch.setattr(doctor, "installed_versions", lambda packages: dict.fromkeys(packages, "1.0"))
    report = doctor.examine()
    assert "tensorrt     11.4.0.106 on NVIDIA H100" in doctor.render(report)
    assert not any("TensorRT" in problem for problem in report["problems"])
    monkeypatch.setattr(torch.cuda, "init", _raising("Found no NVIDIA driver on your system"))
    report = doctor.examine()
    assert "builds and checks graphs (--trt-check), runs no engines" in report["tensorrt"]["tensorrt-rtx"]["use"]
    found = "TensorRT needs a GPU: Found no NVIDIA driver on your system; check whether `nvidia-smi` works"
    assert found in report["problems"]
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert "tensorrt     TensorRT is not installed; pip install 'lipsformer[trt]'" in doctor.render(doctor.examine())
    monkeypatch.setattr(doctor, "installed_versions", lambda _: {"onnxruntime": "1.0"})
    assert not any("TensorRT is" in problem for problem in doctor.examine()["problems"])  # none is needed
    assert "Runtime" not in fake.CALLS
    assert "Builder" not in fake.CALLS
