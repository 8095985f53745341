"""One model in a process of its own, so that its memory and its threads are its own: loads and measures it when told.

`process.py` starts it. Requests and answers are JSON, a line each, on stdin and stdout; it ends when stdin does.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipsformer.images.open import open_image
from lipsformer.images.preprocessing import Preprocessing
from lipsformer.images.samples import SAMPLES
from lipsformer.inference.predictor import load_predictor
from lipsformer.inference.runtimes import Logits, Pixels, open_session
from lipsformer.system.errors import InputError, LipsFormerError

__all__ = ["main"]

LIBRARIES = {
    ".safetensors": ("torch", "lipsformer.checkpoints.checkpoint", "lipsformer.model.pixel_norm"),
    ".onnx": ("onnxruntime",),
    ".engine": ("tensorrt", "tensorrt_rtx"),
}
WARM_UP_CALLS = 3
LEAST_CALLS = 3  # of a turn, however short
PRODUCT_SIDE = 2048


class Subject:
    """A loaded model, its input, and what it took to load and run it once at each batch size."""

    def __init__(self, model: str, device: str, threads: int, batches: Sequence[int], cuda: bool) -> None:
        for library in LIBRARIES.get(Path(model).suffix, ()):
            with contextlib.suppress(ImportError):  # whoever needs it says so
                importlib.import_module(library)
        memory, gpu_memory = _peak_memory(), _gpu_memory(cuda)
        predictor = load_predictor(model, device, threads=threads)
        self.infer = predictor.runtime.infer
        photos = _photos(predictor.preprocessing)
        self.pixels = photos[np.arange(max(len(photos), *batches)) % len(photos)]
        self.facts: dict[str, Any] = {
            "provider": predictor.runtime.provider,
            "preprocessing": predictor.preprocessing.to_dict(),
            "memory": [],
            "gpu_memory": [],
        }
        for batch in sorted(batches):  # rising, so that what a larger one needs is not counted for a smaller one
            for _ in range(WARM_UP_CALLS):
                self.infer(self.pixels[:batch])
            self.facts["memory"].append(_growth(memory, _peak_memory()))
            self.facts["gpu_memory"].append(_growth(gpu_memory, _gpu_memory(cuda)))
        self.facts["logits"] = _answers(self.infer, photos, min(batches)).tolist()

    def turn(self, batch: int, seconds: float) -> list[float]:
        """Seconds of each call at this batch size, for as long as `seconds`, three calls at least."""
        pixels = self.pixels[:batch]
        self.infer(pixels)  # not timed: the caches hold what another model left there
        times: list[float] = []
        end = time.perf_counter() + seconds
        while len(times) < LEAST_CALLS or time.perf_counter() < end:
            started = time.perf_counter()
            self.infer(pixels)
            times.append(time.perf_counter() - started)
        return times


class MatrixProduct:
    """What the cores can do: a product of two square float32 matrices, as large as the caches hold.

    By PyTorch and, where it is installed, by ONNX Runtime: which of the two is better depends on the processor.
    """

    def __init__(self, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        a, b, out = (torch.rand(PRODUCT_SIDE, PRODUCT_SIDE) for _ in range(3))
        self.products: list[Callable[[], object]] = [lambda: torch.mm(a, b, out=out)]
        with contextlib.suppress(InputError):
            session = open_session(_product_graph(b.numpy()), cuda=False, threads=threads)
            self.products.append(lambda: session.run(None, {"a": a.numpy()}))
        self.facts = {"operations": 2 * PRODUCT_SIDE**3}

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


def main() -> None:
    """Answers requests: the first says what to load, each further one asks for a turn."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints must not come between the answers
    subject: Subject | MatrixProduct | None = None
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, Any]
        try:
            if subject is None:
                subject = Subject(**request) if "model" in request else MatrixProduct(**request)
                answer = subject.facts
            else:
                answer = {"times": subject.turn(**request)}
        except LipsFormerError as error:
            answer = {"error": str(error), "status": error.exit_code}
        except Exception as error:  # noqa: BLE001 - whatever a runtime raises, the other process must hear of it
            answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", "status": None}
        print(json.dumps(answer), file=answers, flush=True)


def _photos(preprocessing: Preprocessing) -> Pixels:
    """The sample photos and their mirror images (N, S, S, 3)."""
    plain = np.stack([preprocessing.apply(open_image(path)) for path in sorted(SAMPLES.glob("*.jpg"))])
    return np.concatenate([plain, plain[:, :, ::-1]])


def _answers(infer: Any, photos: Pixels, batch: int) -> Logits:
    """Logits (N, K) of all photos, in batches of exactly `batch`; the last is filled up with photos from the start."""
    count = len(photos)
    chunks = [infer(photos[np.arange(start, start + batch) % count]) for start in range(0, count, batch)]
    return np.concatenate(chunks)[:count]


def _peak_memory() -> int | None:
    """The most memory that this process has had, in bytes; None where the system does not tell.

    Not getrusage's ru_maxrss: on Linux that starts with what the parent had.
    """
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    line = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def _gpu_memory(cuda: bool) -> int | None:
    """Bytes of the GPU's memory that are in use, by whomever; None without a GPU or a PyTorch that can ask it."""
    if not cuda:
        return None
    import torch

    free, total = torch.cuda.mem_get_info()
    return total - free


def _growth(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else after - before


if __name__ == "__main__":
    main()
