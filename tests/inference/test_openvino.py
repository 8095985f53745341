"""OpenVINO on the CPU: bf16 and nothing else, one answer for an image in any batch, and no call to the outside."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from lipsformer.inference.runtimes import OnnxRuntime, Outputs, Pixels
from lipsformer.inference.runtimes.openvino import OpenVinoRuntime, check_bf16, import_openvino
from lipsformer.system.errors import InputError
from tests.support.bf16 import AMX, AVX512, NEITHER, needs_bf16, pretend_cpu
from tests.support.trained import Trained

pytestmark = pytest.mark.openvino

SIZE = 32
ROUNDING = 1e-2  # between one thread and several: `order` of the parity gate


def photos(number: int) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (number, SIZE, SIZE, 3), np.uint8)


def error(found: np.ndarray | None, expected: np.ndarray | None) -> float:
    """Relative L2 error of the worst row."""
    assert found is not None
    assert expected is not None
    return float((np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)).max())


@needs_bf16
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_each_image_gets_its_answer_in_bf16_at_any_batch_size(trained: Trained, threads: int) -> None:
    graph, pixels = trained.bundle / "ort-fp32.onnx", photos(7)
    exact = OnnxRuntime(graph, "cpu", threads=1).infer(pixels)
    runtime = OpenVinoRuntime(graph, threads)
    assert runtime.provider == "OpenVINO CPU, bf16"
    assert (runtime.image_size, runtime.outputs, runtime.channels) == (SIZE, len(trained.classes), 128)
    alone = Outputs.joined([runtime.infer(pixels[index : index + 1]) for index in range(7)])
    for found, expected in zip(alone, exact, strict=True):
        assert 1e-3 < error(found, expected) < 5e-2  # float32 would be nearer, a swapped image further away
    for batch in range(1, 8):
        for found, expected in zip(runtime.infer(pixels[:batch]), alone.at(slice(batch)), strict=True):
            assert error(found, expected) < ROUNDING
    for found, expected in zip(runtime.infer(pixels[::-2]), alone.at(slice(None, None, -2)), strict=True):
        assert error(found, expected) < ROUNDING


@needs_bf16
@pytest.mark.parametrize("threads", [1, 2])
def test_the_number_of_threads_is_honored(trained: Trained, threads: int) -> None:
    runtime = OpenVinoRuntime(trained.bundle / "ort-fp32.onnx", threads)
    compiled = runtime._together.get_compiled_model()
    assert compiled.get_property("INFERENCE_NUM_THREADS") == threads
    assert compiled.get_property("INFERENCE_PRECISION_HINT").to_string() == "bf16"


@needs_bf16
def test_no_images(trained: Trained) -> None:
    logits, features = OpenVinoRuntime(trained.bundle / "ort-fp32.onnx", threads=2).infer(photos(0))
    assert logits.shape == (0, len(trained.classes))
    assert features is not None
    assert len(features) == 0


@needs_bf16
@pytest.mark.parametrize("batch", [1, 4, 5])
def test_pixels_that_do_not_fit_are_an_error(trained: Trained, batch: int) -> None:
    runtime = OpenVinoRuntime(trained.bundle / "ort-fp32.onnx", threads=2)
    expected = runtime.infer(photos(batch)).logits
    with pytest.raises(RuntimeError, match="tensor size"):
        runtime.infer(photos(batch)[:, :-1])
    np.testing.assert_array_equal(runtime.infer(photos(batch)).logits, expected)


@needs_bf16
def test_pixels_of_another_type_are_an_error(trained: Trained) -> None:
    runtime = OpenVinoRuntime(trained.bundle / "ort-fp32.onnx", 1)
    with pytest.raises(TypeError, match="uint8"):
        runtime.infer(photos(1).astype(np.float32))


@needs_bf16
def test_callers_get_their_own_answers(trained: Trained) -> None:
    runtime = OpenVinoRuntime(trained.bundle / "ort-fp32.onnx", threads=2)
    pixels, found = photos(15), {}
    expected = {start: runtime.infer(pixels[start : start + 5]).logits for start in (0, 5, 10)}

    def ask(start: int) -> None:
        for _ in range(5):
            found[start] = runtime.infer(pixels[start : start + 5]).logits

    callers = [threading.Thread(target=ask, args=(start,)) for start in expected]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    for start, logits in expected.items():
        np.testing.assert_array_equal(found[start], logits)


@needs_bf16
def test_another_precision_than_the_requested_is_refused(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    openvino = import_openvino()
    compile_model = openvino.Core.compile_model

    def unwilling(core: object, graph: object, device: str, settings: dict[str, object]) -> object:
        return compile_model(core, graph, device, settings | {"INFERENCE_PRECISION_HINT": "f32"})

    monkeypatch.setattr(openvino.Core, "compile_model", unwilling)
    with pytest.raises(InputError, match=r"OpenVINO 2\S+ computes in f32 although bf16 was requested; use fp32"):
        OpenVinoRuntime(trained.bundle / "ort-fp32.onnx")


@needs_bf16
def test_what_openvino_cannot_read_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "graph.onnx").write_bytes(b"no graph")
    with pytest.raises(InputError, match=r"graph\.onnx: OpenVINO cannot compile it \(.*\); export it again") as refusal:
        OpenVinoRuntime(tmp_path / "graph.onnx")
    assert "\n" not in str(refusal.value)


def test_a_cpu_without_bf16_is_refused(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_cpu(NEITHER, tmp_path, monkeypatch)
    with pytest.raises(InputError, match=r"bf16 needs AMX or AVX512-BF16, and .*\(Imaginary CPU\) lists neither"):
        OpenVinoRuntime(trained.bundle / "ort-fp32.onnx")


@pytest.mark.parametrize("flags", [AMX, AVX512])
def test_without_openvino_the_command_that_installs_it_is_given(
    flags: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_cpu(flags, tmp_path, monkeypatch)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(InputError, match=r"OpenVINO is not installed; pip install 'lipsformer\[openvino\]'"):
        check_bf16()


def test_openvino_reports_nothing_to_its_makers(tmp_path: Path) -> None:
    code = (
        "import sys; from lipsformer.inference.runtimes.openvino import import_openvino; import_openvino();"
        "sys.exit(any(name.startswith('openvino_telemetry.') for name in sys.modules))"
    )
    home = {name: value for name, value in os.environ.items() if name != "CI"} | {"HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env=home, check=True)
    assert list(tmp_path.iterdir()) == []  # it would keep an identifier here
