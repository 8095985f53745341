"""ONNX Runtime: one answer for an image, whatever its batch and the number of threads; the options of CUDA."""

from __future__ import annotations

import gc
import threading
from typing import Any

import numpy as np
import pytest

from lipsformer.inference.runtimes import (
    CUDA,
    OnnxRuntime,
    Outputs,
    Pixels,
    import_onnxruntime,
    onnxruntime,
    open_session,
)
from tests.support.trained import Trained

SIZE = 32


def photos(number: int) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (number, SIZE, SIZE, 3), np.uint8)


def same(found: Outputs, expected: Outputs) -> None:
    np.testing.assert_allclose(found.logits, expected.logits, rtol=0, atol=1e-5)
    assert found.features is not None
    assert expected.features is not None
    np.testing.assert_allclose(found.features, expected.features, rtol=0, atol=1e-5)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_each_image_gets_its_answer_at_any_batch_size(trained: Trained, threads: int) -> None:
    graph = trained.bundle / "ort-fp32.onnx"
    pixels, one_by_one = photos(8), OnnxRuntime(graph, "cpu", threads=1)
    expected = Outputs.joined([one_by_one.infer(pixels[index : index + 1]) for index in range(8)])
    assert np.ptp(expected.logits, axis=0).max() > 0.1  # a swapped share would show
    runtime = OnnxRuntime(graph, "cpu", threads)
    for batch in range(1, 9):
        same(runtime.infer(pixels[:batch]), expected.at(slice(batch)))
    same(runtime.infer(pixels[::-2]), expected.at(slice(None, None, -2)))


@pytest.mark.parametrize("threads", [1, 2])
def test_no_images(trained: Trained, threads: int) -> None:
    logits, features = OnnxRuntime(trained.bundle / "ort-fp32.onnx", "cpu", threads).infer(photos(0))
    assert logits.shape == (0, len(trained.classes))
    assert features is not None
    assert len(features) == 0


@pytest.mark.parametrize("batch", [1, 4, 5])
def test_pixels_that_do_not_fit_are_an_error(trained: Trained, batch: int) -> None:
    runtime = OnnxRuntime(trained.bundle / "ort-fp32.onnx", "cpu", threads=2)
    with pytest.raises(Exception, match="invalid dimensions"):
        runtime.infer(photos(batch)[:, :-1])
    assert len(runtime.infer(photos(batch)).logits) == batch


def test_callers_get_their_own_answers(trained: Trained) -> None:
    runtime = OnnxRuntime(trained.bundle / "ort-fp32.onnx", "cpu", threads=2)
    pixels = photos(15)
    expected, found = runtime.infer(pixels), {}

    def ask(start: int) -> None:
        found[start] = runtime.infer(pixels[start : start + 5])

    callers = [threading.Thread(target=ask, args=(start,)) for start in (0, 5, 10)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    for start, outputs in found.items():
        same(outputs, expected.at(slice(start, start + 5)))
    assert len(found) == 3


@pytest.mark.parametrize(("batch", "wanted"), [(8, [2, 2, 2, 2]), (13, [1, 2, 2, 2, 2, 2, 2]), (6, [1, 1, 2, 2])])
def test_threads_compute_a_few_images_at_a_time_and_equally_many(
    batch: int, wanted: list[int], trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, sizes = onnxruntime._run, []

    def noted(session: Any, pixels: Any) -> Any:
        sizes.append(len(pixels))
        return run(session, pixels)

    monkeypatch.setattr(onnxruntime, "PART_PIXELS", 2 * 32 * 32)
    monkeypatch.setattr(onnxruntime, "_run", noted)
    runtime = OnnxRuntime(trained.bundle / "ort-fp32.onnx", "cpu", threads=2)
    found = runtime.infer(photos(batch))
    assert sorted(sizes) == wanted
    same(found, OnnxRuntime(trained.bundle / "ort-fp32.onnx", "cpu", threads=1).infer(photos(batch)))


def test_threads_end_with_the_runtime(trained: Trained) -> None:
    def ours() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name.startswith("onnxruntime")]

    gc.collect()
    before = ours()
    runtime = OnnxRuntime(trained.bundle / "ort-fp32.onnx", "cpu", threads=2)
    runtime.infer(photos(4))
    started = [thread for thread in ours() if thread not in before]
    assert started
    del runtime
    gc.collect()
    for thread in started:
        thread.join(timeout=10)
        assert not thread.is_alive()


def test_cuda_computes_in_float32_and_starts_fast(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    ort = import_onnxruntime()
    opened: list[Any] = []
    monkeypatch.setattr(ort, "get_available_providers", lambda: [CUDA])
    monkeypatch.setattr(ort, "preload_dlls", lambda: None)
    monkeypatch.setattr(ort, "set_default_logger_severity", lambda severity: None)
    monkeypatch.setattr(ort, "InferenceSession", lambda model, options, providers: opened.append(providers))
    open_session(trained.bundle / "ort-fp32.onnx", cuda=True)
    assert opened == [[(CUDA, {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}), "CPUExecutionProvider"]]
