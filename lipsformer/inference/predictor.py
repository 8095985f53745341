"""Predictions from anything that MODEL may be: a checkpoint, an ONNX file or a bundle."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lipsformer.bundle.class_names import parse_class_names
from lipsformer.bundle.manifest import Manifest, read_manifest
from lipsformer.bundle.pretrained import resolve_model
from lipsformer.images.open import ImageLimits, open_image
from lipsformer.images.preprocessing import Preprocessing
from lipsformer.inference.runtimes.select import open_runtime
from lipsformer.system.console import say
from lipsformer.system.errors import InputError
from lipsformer.system.hardware import check_device

from .runtimes import OnnxRuntime, Pixels, Runtime, TorchRuntime

if TYPE_CHECKING:
    from lipsformer.inference.runtimes.tensorrt import TensorRtRuntime

__all__ = ["Prediction", "Predictor", "load_bundle", "load_predictor", "softmax"]

DEFAULT_BATCH = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prediction:
    """One class for one image: `score` is its softmax probability."""

    label: str
    index: int
    score: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Predictor:
    """A runtime with the meaning of its input and output: preprocessing before it, class names after it.

    `file` is what the runtime runs, in `precision`, and `fallbacks` tells why it is not a faster one of its bundle.
    `max_batch` is the largest batch to run; for an export, the largest that parity was shown for.
    """

    runtime: Runtime
    preprocessing: Preprocessing
    classes: tuple[str, ...]
    file: Path
    precision: str
    max_batch: int = DEFAULT_BATCH
    fallbacks: tuple[str, ...] = ()

    def prepare(self, image: Path | bytes | Image.Image, limits: ImageLimits | None = None) -> Pixels:
        """Network input (S, S, 3) of an image file, of its bytes, or of a Pillow image.

        Raises:
            InputError: (as ImageError) if the image is refused.
        """
        if not isinstance(image, Image.Image):
            image = open_image(image, limits=limits)
        return self.preprocessing.apply(image)

    def rank(self, logits: NDArray[np.float32], top_k: int) -> list[Prediction]:
        """The `top_k` best classes of one image's logits (K,), by falling score.

        Raises:
            InputError: if `top_k` is below 1; one above K means K.
        """
        if top_k < 1:
            raise InputError(f"top_k={top_k}: at least 1 is needed")
        scores = softmax(logits)
        # A stable sort of the negated scores: equal scores keep the order of their classes.
        order = np.argsort(-scores, kind="stable")[:top_k]
        return [Prediction(label=self.classes[i], index=int(i), score=float(scores[i])) for i in order]

    def predict(self, images: Iterable[str | Path | bytes | Image.Image], top_k: int = 5) -> list[list[Prediction]]:
        """The `top_k` best classes of each image, by falling score.

        Raises:
            InputError: if an image cannot be used (the message names it) or `top_k` is below 1.
        """
        pixels = (self.prepare(Path(image) if isinstance(image, str) else image) for image in images)
        batches = iter(lambda: list(itertools.islice(pixels, self.max_batch)), [])
        return [self.rank(logits, top_k) for batch in batches for logits in self.runtime.infer(np.stack(batch))]


def load_predictor(
    model: str | Path, device: str = "auto", precision: str | None = None, threads: int | None = None
) -> Predictor:
    """Loads a checkpoint (.safetensors), an exported graph (.onnx), an engine or a bundle (a folder) for prediction.

    Args:
        model: its path, or the name of a trained model that comes with the package.
        device: "auto", "cpu" or "cuda". Where a faster runtime was passed over, stderr tells why.
        precision: which of a bundle's precisions to run; by default the first that it was exported with.
        threads: CPU threads for one inference; by default all cores.

    Raises:
        InputError: if it is none of these, or `device` or `precision` cannot be had.
        GateError: if a bundle's file does not have the hash that its manifest promises.
    """
    check_device(device)
    predictor = _load(resolve_model(model), device, precision, threads)
    for fallback in predictor.fallbacks:
        say(fallback)
    return predictor


def load_bundle(
    bundle: Path, manifest: Manifest, *, device: str = "auto", precision: str | None = None, threads: int | None = None
) -> Predictor:
    """The predictor of a bundle whose manifest has been read, and so its files checked; see `open_runtime`.

    Raises:
        InputError: if the file does not fit the manifest, or `device` or `precision` cannot be had.
    """
    chosen = open_runtime(bundle, manifest, device=device, precision=precision, threads=threads)
    path, kind = bundle / chosen.file.name, str(chosen.file.precision)
    return _for_export(
        chosen.runtime, path, manifest.preprocessing, manifest.classes, manifest.max_batch, kind, chosen.fallbacks
    )


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Probabilities over the last dimension, computed in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    exponentials = np.exp(shifted)
    result: NDArray[np.float64] = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return result


def _for_export(
    runtime: OnnxRuntime | TensorRtRuntime,
    file: Path,
    preprocessing: Preprocessing,
    classes: tuple[str, ...],
    max_batch: int,
    precision: str,
    fallbacks: tuple[str, ...] = (),
) -> Predictor:
    if len(classes) != runtime.outputs:
        raise InputError(f"{file}: {len(classes)} class names for {runtime.outputs} outputs; export it again")
    if preprocessing.image_size != runtime.image_size:
        raise InputError(
            f"{file}: preprocessing gives {preprocessing.image_size} pixels to a graph of "
            f"{runtime.image_size}; export it again"
        )
    return Predictor(
        runtime=runtime,
        preprocessing=preprocessing,
        classes=classes,
        file=file,
        precision=precision,
        max_batch=max_batch,
        fallbacks=fallbacks,
    )


def _load(path: Path, device: str, precision: str | None, threads: int | None) -> Predictor:
    if path.is_dir():
        return load_bundle(path, read_manifest(path), device=device, precision=precision, threads=threads)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; give a checkpoint, an .onnx file or a bundle")
    if precision is not None:
        raise InputError(f"--precision {precision}: chooses among a bundle's files, and {path} is not a bundle")
    match path.suffix:
        case ".onnx":
            return _from_graph(path, device, threads)
        case ".engine":
            return _from_engine(path, device)
        case ".safetensors":
            return _from_checkpoint(path, device, threads)
    raise InputError(f"{path}: not a model; give a checkpoint (.safetensors), an .onnx file or a bundle folder")


def _from_graph(path: Path, device: str, threads: int | None) -> Predictor:
    runtime = OnnxRuntime(path, device, threads)
    metadata = runtime.metadata()
    try:
        preprocessing = Preprocessing.from_dict(metadata["preprocessing"])
        classes = parse_class_names(metadata["classes"])
        max_batch = int(metadata["max_batch"])
        precision = str(metadata["precision"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: its metadata cannot be read ({error}); export it again") from None
    fallbacks = (runtime.fallback,) if runtime.fallback else ()
    return _for_export(runtime, path, preprocessing, classes, max_batch, precision, fallbacks)


def _from_engine(path: Path, device: str) -> Predictor:
    from lipsformer.inference.runtimes.tensorrt import TensorRtRuntime

    if device == "cpu":
        raise InputError(f"--device cpu: {path} is an engine and runs on a GPU; give the bundle or its .onnx file")
    manifest = read_manifest(path.parent)
    for file in manifest.files:
        if file.name == path.name and file.kind == "engine":
            runtime = TensorRtRuntime(path, file)
            return _for_export(
                runtime, path, manifest.preprocessing, manifest.classes, manifest.max_batch, str(file.precision)
            )
    raise InputError(f"{path}: the manifest beside it names no such engine; keep it in the bundle it came in")


def _from_checkpoint(path: Path, device: str, threads: int | None) -> Predictor:
    import torch

    from lipsformer.checkpoints.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(path)
    if threads:
        torch.set_num_threads(threads)
    runtime = TorchRuntime(checkpoint, device)
    return Predictor(
        runtime=runtime,
        preprocessing=checkpoint.preprocessing,
        classes=checkpoint.classes,
        file=path,
        precision="fp32",
    )
