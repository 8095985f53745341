"""An exported graph run by ONNX Runtime, on the CPU or on CUDA."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import math
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from lipsformer.system.errors import InputError
from lipsformer.system.extras import require
from lipsformer.system.hardware import cores

from .base import FEATURES_NAME, IMAGES_NAME, INPUT_NAME, LOGITS_NAME, ONNX_METADATA_KEY, Outputs, Pixels

__all__ = ["CUDA", "OnnxRuntime", "import_onnxruntime", "open_session"]

CUDA = "CUDAExecutionProvider"
ERRORS_AND_WORSE, FATAL = 3, 4  # ONNX Runtime's log severities
# Threads wait for each other after every operator: by default they spin for tens of milliseconds and take equal blocks.
# These spin briefly, and a thread that is behind takes fewer blocks. Measured in benchmarks/contention.
THREADS = {"session.intra_op.spin_duration_us": "20", "session.dynamic_block_base": "4"}
PART_PIXELS = 2 * 224 * 224  # of the images that a thread computes at a time: more do not make an image cheaper
CUDA_OPTIONS = {
    "use_tf32": "0",  # float32 means float32: TF32 has fp16's ten bits
    "cudnn_conv_algo_search": "HEURISTIC",  # by default each new batch size waits for a long search
}


class OnnxRuntime:
    """Runs an exported graph in ONNX Runtime.

    On the CPU, a batch is divided into parts of a few images, as many for each of `threads` threads, which run the
    whole graph. They wait for each other once in a batch instead of after every operator, and a thread that a busy
    process holds up leaves its parts to the others. Images that are left over, fewer than `threads`, are computed by
    all threads together. From the first batch of `threads` images on, the graph is in memory twice.

    Args:
        model: the .onnx file.
        device: "auto" (CUDA if it works, else the CPU; then `fallbacks` says why), "cpu" or "cuda".
        threads: CPU threads for one inference; by default all cores this process may use.

    Raises:
        InputError: if ONNX Runtime is missing, the file is not a graph that we exported, or "cuda" does not work.
    """

    def __init__(self, model: Path, device: str = "auto", threads: int | None = None) -> None:
        if not model.is_file():
            raise InputError(f"{model}: no such file; give the .onnx file that `lipsformer export` wrote")
        self.model = model
        self.session = open_session(model, cuda=device != "cpu", threads=threads)
        self.provider: str = self.session.get_providers()[0]  # what actually runs
        if self.provider != CUDA and device == "cuda":
            raise InputError("--device cuda: ONNX Runtime fell back to the CPU; run `lipsformer doctor`")
        self.fallbacks: tuple[str, ...] = ()  # why a faster provider was passed over
        if self.provider != CUDA and device == "auto" and CUDA in import_onnxruntime().get_available_providers():
            self.fallbacks = ("ONNX Runtime is built for CUDA but runs on the CPU here; `lipsformer doctor` says why",)
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        described = [(value.name, value.type, len(value.shape)) for value in (*inputs, *outputs)]
        known = [
            (INPUT_NAME, "tensor(uint8)", 4),
            (LOGITS_NAME, "tensor(float)", 2),
            (FEATURES_NAME, "tensor(float)", 2),
        ]
        if [value.name for value in inputs] == [IMAGES_NAME]:
            raise InputError(f"{model}: takes images of any size; it is for other programs: give the bundle instead")
        if described not in (known, known[:2]):
            raise InputError(f"{model}: not a graph that `lipsformer export` wrote (uint8 pixels in, float logits out)")
        self.image_size: int = inputs[0].shape[1]
        self.outputs: int = outputs[0].shape[1]
        self.channels: int | None = outputs[1].shape[1] if len(outputs) > 1 else None  # of the features
        self.threads = 1 if self.provider == CUDA else threads or cores()  # that a batch is divided among

    def metadata(self) -> dict[str, Any]:
        """The metadata that the export wrote into the graph: model, classes, preprocessing, precision, largest batch.

        Raises:
            InputError: if the graph has no readable metadata.
        """
        text = self.session.get_modelmeta().custom_metadata_map.get(ONNX_METADATA_KEY, "")
        try:
            metadata: dict[str, Any] = dict(json.loads(text))
        except (ValueError, TypeError, RecursionError):
            raise InputError(f"{self.model}: no LipsFormer metadata; export it again") from None
        return metadata

    @functools.cached_property
    def _divided(self) -> tuple[Any, ThreadPoolExecutor]:
        """The session that each thread runs on its share, and the threads."""
        session = open_session(self.model, cuda=False, threads=1)
        return session, ThreadPoolExecutor(self.threads, thread_name_prefix="onnxruntime")

    def infer(self, pixels: Pixels) -> Outputs:
        """Logits (N, K) and features (N, C) of pixels (N, S, S, 3)."""
        divided = len(pixels) - len(pixels) % self.threads if self.threads > 1 else 0
        if not divided:
            return _run(self.session, pixels)
        session, pool = self._divided
        each = math.ceil(divided / self.threads / max(1, PART_PIXELS // self.image_size**2))  # parts for a thread
        parts = np.array_split(pixels[:divided], each * self.threads)
        outputs = list(pool.map(functools.partial(_run, session), parts))
        if divided < len(pixels):
            outputs.append(_run(self.session, pixels[divided:]))
        return Outputs.joined(outputs)


def _run(session: Any, pixels: Pixels) -> Outputs:
    logits, *features = session.run(None, {INPUT_NAME: np.ascontiguousarray(pixels)})
    return Outputs(logits, features[0] if features else None)


def open_session(model: Path | bytes, *, cuda: bool, threads: int | None = None) -> Any:
    """Open an ONNX Runtime session of an .onnx file or of its bytes; `get_providers()` says what it really runs on.

    Raises:
        InputError: if ONNX Runtime is missing or cannot load the model.
    """
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or cores()
    for key, value in THREADS.items():
        options.add_session_config_entry(key, value)
    options.log_severity_level = ERRORS_AND_WORSE
    providers: list[Any] = ["CPUExecutionProvider"]
    if cuda and CUDA in ort.get_available_providers():
        providers.insert(0, (CUDA, CUDA_OPTIONS))
        ort.set_default_logger_severity(FATAL)  # our own line reports a missing CUDA library; its log would add four
        with contextlib.redirect_stdout(io.StringIO()):
            ort.preload_dlls()  # from the installed CUDA packages, if any
    try:
        return ort.InferenceSession(model if isinstance(model, bytes) else os.fspath(model), options, providers)
    except Exception as error:  # noqa: BLE001 - ONNX Runtime raises its own types, without a common base
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{model!s:.300}: ONNX Runtime cannot load it ({reason}); export it again") from None


def import_onnxruntime() -> Any:
    """Import ONNX Runtime with its telemetry disabled.

    Raises:
        InputError: if it is not installed.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read at import
    require("cpu")
    import onnxruntime

    return onnxruntime
