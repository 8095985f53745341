"""The objects that are measured, each in a separate process, so that memory and threads are its alone."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lipsformer.images.preprocessing import Preprocessing
from lipsformer.images.samples import SAMPLES
from lipsformer.inference.predictor import load_predictor
from lipsformer.inference.runtimes import Logits, Outputs, Pixels, open_session
from lipsformer.inference.runtimes.openvino import import_openvino
from lipsformer.system.errors import InputError
from lipsformer.system.hardware import peak_memory

__all__ = ["OPERATIONS", "MatrixProduct", "MeasuredModel", "ModelFacts", "time_calls"]

LIBRARIES = {
    ".safetensors": ("torch", "lipsformer.checkpoints.checkpoint", "lipsformer.model.pixel_norm"),
    ".onnx": ("onnxruntime",),
    ".engine": ("tensorrt", "tensorrt_rtx"),
}
WARM_UP_CALLS = 3
LEAST_CALLS = 3  # of a turn, however short
PRODUCT_SIDE = 2048
OPERATIONS = 2 * PRODUCT_SIDE**3  # of one matrix product


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """A model once it is loaded: what runs it, its logits (N, K) of the sample photos, and its memory.

    `memory` and `gpu_memory` are bytes of growth for each batch size, in rising order; None where unknown.
    """

    provider: str
    preprocessing: Preprocessing
    logits: Logits
    memory: tuple[int | None, ...]
    gpu_memory: tuple[int | None, ...]


class MeasuredModel:
    """A loaded model and its input. Loading imports its libraries first: their memory does not count."""

    def __init__(
        self, model: Path, precision: str | None, device: str, threads: int, batches: Sequence[int], cuda: bool
    ) -> None:
        for library in LIBRARIES.get(model.suffix, ()):
            with contextlib.suppress(ImportError):  # whatever needs it says so
                importlib.import_module(library)
        if precision == "bf16":
            with contextlib.suppress(InputError):
                import_openvino()
        memory, gpu_memory = peak_memory(), _gpu_memory(cuda)
        predictor = load_predictor(model, device, precision, threads)
        self.infer = predictor.runtime.infer
        photos = _photos(predictor.preprocessing)
        self.pixels = photos[np.arange(max(len(photos), *batches)) % len(photos)]
        growth, gpu_growth = [], []
        for batch in sorted(batches):  # rising, so that the memory of a larger one does not count for a smaller one
            for _ in range(WARM_UP_CALLS):
                self.infer(self.pixels[:batch])
            growth.append(_growth(memory, peak_memory()))
            gpu_growth.append(_growth(gpu_memory, _gpu_memory(cuda)))
        self._facts = ModelFacts(
            provider=predictor.runtime.provider,
            preprocessing=predictor.preprocessing,
            logits=_in_batches(self.infer, photos, min(batches)),
            memory=tuple(growth),
            gpu_memory=tuple(gpu_growth),
        )

    def facts(self) -> ModelFacts:
        """What loading and the first calls found."""
        return self._facts

    def turn(self, batch: int, seconds: float) -> list[float]:
        """Seconds of each call at this batch size, for at least `seconds` and three calls."""
        return time_calls(self.infer, self.pixels[:batch], seconds)


def time_calls(infer: Callable[[Pixels], object], pixels: Pixels, seconds: float) -> list[float]:
    """Seconds of each call on these pixels, for at least `seconds` and three calls, after one that is not timed."""
    infer(pixels)  # the caches may hold another model's data
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < LEAST_CALLS or time.perf_counter() < end:
        started = time.perf_counter()
        infer(pixels)
        times.append(time.perf_counter() - started)
    return times


class MatrixProduct:
    """The peak speed of the cores: a product of two square float32 matrices that fit into the caches.

    By PyTorch and, if installed, by ONNX Runtime: which one is faster depends on the processor.
    """

    def __init__(self, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        a, b, out = (torch.rand(PRODUCT_SIDE, PRODUCT_SIDE) for _ in range(3))
        self.products: list[Callable[[], object]] = [lambda: torch.mm(a, b, out=out)]
        with contextlib.suppress(InputError):
            session = open_session(_product_graph(b.numpy()), cuda=False, threads=threads)
            self.products.append(lambda: session.run(None, {"a": a.numpy()}))

    def turn(self) -> list[float]:
        """Seconds of each of a few products."""
        times = []
        for product in self.products:
            for _ in range(LEAST_CALLS + 1):
                started = time.perf_counter()
                product()
                times.append(time.perf_counter() - started)
        return times


def _product_graph(b: NDArray[np.float32]) -> bytes:
    """The product with `b` as a serialized ONNX model."""
    from onnx import TensorProto, helper, numpy_helper

    a, out = (helper.make_tensor_value_info(name, TensorProto.FLOAT, b.shape) for name in ("a", "out"))
    node = helper.make_node("MatMul", ["a", "b"], ["out"])
    graph = helper.make_graph([node], "product", [a], [out], [numpy_helper.from_array(b, "b")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return bytes(model.SerializeToString())


def _photos(preprocessing: Preprocessing) -> Pixels:
    """Pixels of the sample photos and their mirror images (N, S, S, 3)."""
    plain = np.stack([preprocessing.read(path) for path in sorted(SAMPLES.glob("*.jpg"))])
    return np.concatenate([plain, plain[:, :, ::-1]])


def _in_batches(infer: Callable[[Pixels], Outputs], photos: Pixels, batch: int) -> Logits:
    """Logits (N, K) of all photos, in batches of exactly `batch`: the last is filled up with the first photos."""
    count = len(photos)
    chunks = [infer(photos[np.arange(start, start + batch) % count]).logits for start in range(0, count, batch)]
    return np.concatenate(chunks)[:count]


def _gpu_memory(cuda: bool) -> int | None:
    """Bytes of the GPU's memory in use by all processes; None without a GPU or a PyTorch that sees it."""
    if not cuda:
        return None
    import torch

    free, total = torch.cuda.mem_get_info()
    return total - free


def _growth(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else after - before
