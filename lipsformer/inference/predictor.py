"""Image classification with any kind of model: a checkpoint, an ONNX file, an engine or a bundle."""

from __future__ import annotations

import base64
import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lipsformer.bundle.acceptance import AcceptanceRule, check_temperature
from lipsformer.bundle.certificate import Certificate
from lipsformer.bundle.class_names import parse_class_names
from lipsformer.bundle.manifest import Manifest, read_manifest
from lipsformer.images.open import ImageLimits
from lipsformer.images.preprocessing import Preprocessing
from lipsformer.system.console import say
from lipsformer.system.errors import InputError
from lipsformer.system.extras import require

from .classification import Classification, Prediction
from .runtimes import Features, GraphRuntime, Logits, OnnxRuntime, Pixels, Runtime, RuntimeOptions, TorchRuntime
from .runtimes.select import open_best

__all__ = ["Predictor", "load_predictor", "softmax"]

DEFAULT_BATCH = 16

ImageSource = str | Path | bytes | Image.Image


@dataclasses.dataclass(frozen=True, kw_only=True)
class Predictor:
    """A runtime together with its preprocessing and its class names.

    `file` is the file that runs, in `precision`. `fallbacks` says why faster files of its bundle were passed over.
    `max_batch` is the largest batch to run; for an export, the largest that passed the parity check. `metrics` are
    those of the training. Logits are divided by `temperature` already. `acceptance` says which answers are accepted.
    `heat_maps` is the bundle's graph that explains answers, if it has one. `certificate` gives the radii of the
    answers.
    """

    runtime: Runtime
    preprocessing: Preprocessing
    classes: tuple[str, ...]
    file: Path
    precision: str
    max_batch: int = DEFAULT_BATCH
    fallbacks: tuple[str, ...] = ()
    metrics: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    temperature: float = 1.0
    acceptance: AcceptanceRule | None = None
    heat_maps: Path | None = None
    certificate: Certificate | None = None

    @classmethod
    def from_bundle(cls, bundle: Path, options: RuntimeOptions, manifest: Manifest | None = None) -> Self:
        """Load the fastest file of a bundle that runs here, see `open_best`; `manifest` if you have read it already.

        Raises:
            InputError: if `bundle` is not a bundle, or the precision or the device is not available.
            GateError: if the hash of a file differs from the manifest.
        """
        manifest = manifest or read_manifest(bundle)
        file, runtime, fallbacks = open_best(bundle, manifest, options)
        acceptance = manifest.read_acceptance(bundle)
        _check_fit(bundle / file.name, runtime, manifest.classes, manifest.preprocessing, acceptance)
        return cls(
            runtime=runtime,
            preprocessing=manifest.preprocessing,
            classes=manifest.classes,
            file=bundle / file.name,
            precision=str(file.precision),
            max_batch=manifest.max_batch,
            fallbacks=fallbacks,
            metrics=manifest.metrics,
            temperature=manifest.temperature,
            acceptance=acceptance,
            heat_maps=manifest.heat_map_graph(bundle),
            certificate=manifest.certificate_of(file),
        )

    @classmethod
    def from_engine(cls, path: Path, options: RuntimeOptions) -> Self:
        """Load one engine of a bundle; the manifest next to it says the rest.

        Raises:
            InputError: if the manifest does not list it, or it cannot run here.
            GateError: if the hash of a file differs from the manifest.
        """
        from .runtimes.tensorrt import TensorRtRuntime

        if options.device == "cpu":
            raise InputError(f"--device cpu: {path} is an engine and runs on a GPU; give the bundle or its .onnx file")
        manifest = read_manifest(path.parent)
        for file in manifest.files:
            if file.name == path.name and file.kind == "engine":
                runtime = TensorRtRuntime(path, file)
                acceptance = manifest.read_acceptance(path.parent)
                _check_fit(path, runtime, manifest.classes, manifest.preprocessing, acceptance)
                return cls(
                    runtime=runtime,
                    preprocessing=manifest.preprocessing,
                    classes=manifest.classes,
                    file=path,
                    precision=str(file.precision),
                    max_batch=manifest.max_batch,
                    metrics=manifest.metrics,
                    temperature=manifest.temperature,
                    acceptance=acceptance,
                    heat_maps=manifest.heat_map_graph(path.parent),
                    certificate=manifest.certificate_of(file),
                )
        raise InputError(f"{path}: the manifest next to it lists no such engine; keep it in the bundle it came in")

    @classmethod
    def from_onnx(cls, path: Path, options: RuntimeOptions) -> Self:
        """Load an exported graph without its bundle: its metadata says the rest.

        Raises:
            InputError: if it is not such a graph, or the device is not available.
        """
        runtime = OnnxRuntime(path, options.device, options.threads)
        metadata = runtime.metadata()
        try:
            predictor = cls(
                runtime=runtime,
                preprocessing=Preprocessing.from_dict(metadata["preprocessing"]),
                classes=parse_class_names(metadata["classes"]),
                file=path,
                precision=str(metadata["precision"]),
                max_batch=int(metadata["max_batch"]),
                fallbacks=runtime.fallbacks,
                temperature=metadata.get("temperature", 1.0),
                acceptance=_parse_acceptance(metadata.get("acceptance")),
            )
            check_temperature(predictor.temperature)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}: its metadata cannot be read ({error}); export it again") from None
        _check_fit(path, runtime, predictor.classes, predictor.preprocessing, predictor.acceptance)
        return predictor

    @classmethod
    def from_checkpoint(cls, path: Path, options: RuntimeOptions) -> Self:
        """Load a checkpoint for PyTorch.

        Raises:
            InputError: if it cannot be read, or the device is not available.
        """
        require("train", "torch", what=str(path))
        import torch

        from lipsformer.checkpoints.certificate import certificate_of
        from lipsformer.checkpoints.checkpoint import load_checkpoint

        checkpoint = load_checkpoint(path)
        if options.threads:
            torch.set_num_threads(options.threads)
        runtime = TorchRuntime(checkpoint, options.device)
        on_cpu = runtime.device.type == "cpu"  # where the rounding is measured
        return cls(
            runtime=runtime,
            preprocessing=checkpoint.preprocessing,
            classes=checkpoint.classes,
            file=path,
            precision="fp32",
            metrics=checkpoint.metrics,
            temperature=checkpoint.temperature,
            acceptance=checkpoint.acceptance,
            certificate=certificate_of(checkpoint) if on_cpu else None,
        )

    def prepare(self, image: Path | bytes | Image.Image, limits: ImageLimits | None = None) -> Pixels:
        """Network input (S, S, 3) of an image file, of its bytes, or of a Pillow image.

        Raises:
            InputError: (as ImageError) if the image is rejected.
        """
        if isinstance(image, Image.Image):
            return self.preprocessing.apply(image)
        return self.preprocessing.read(image, limits=limits)

    def classify(self, logits: Logits, features: Features | None, top_k: int) -> Classification:
        """The answer to one image with logits (K,) and features (C,): the `top_k` classes with the highest scores.

        Raises:
            InputError: if `top_k` is below 1; above K means K.
        """
        if top_k < 1:
            raise InputError(f"top_k={top_k}: at least 1 is needed")
        scores = softmax(logits)
        # A stable sort of the negated scores: equal scores keep the order of their classes.
        order = np.argsort(-scores, kind="stable")[:top_k]
        predictions = tuple(Prediction(label=self.classes[i], index=int(i), score=float(scores[i])) for i in order)
        radius = None if self.certificate is None else float(self.certificate.radii(logits[None])[0])
        if self.acceptance is None or features is None:
            return Classification(predictions=predictions, certified_radius=radius)
        distance = float(self.acceptance.space.distances(features[None])[0])
        reason = self.acceptance.refusal(predictions[0].score, distance)
        return Classification(
            predictions=predictions,
            accepted=reason is None,
            reason=reason,
            distance=distance,
            certified_radius=radius,
        )

    def predict(self, images: Iterable[ImageSource], top_k: int = 5) -> list[Classification]:
        """The answer to each image: its `top_k` classes, and whether the answer is accepted.

        Raises:
            InputError: if an image cannot be used (the message names it) or `top_k` is below 1.
        """
        answers = []
        for answer in self._answers(images, top_k, self.max_batch):
            if isinstance(answer, InputError):
                raise answer
            answers.append(answer)
        return answers

    def stream(
        self, sources: str | Path | Iterable[str | Path], top_k: int = 5, *, column: str | None = None, batch: int = 1
    ) -> Iterator[tuple[str, Classification | InputError]]:
        """Yields the name of each image of the sources and its answer, or why there is none, as soon as it is there.

        Sources may be endless. Images are read, decoded and computed in this thread.

        Args:
            sources: what `lipsformer predict` takes: files, folders, patterns, shards, Parquet files, URLs or "-".
            top_k: classes in each answer.
            column: of Parquet files, see `list_images`.
            batch: images that are computed together. More are faster on a GPU, and their answers come together.

        Raises:
            InputError: if `top_k` or `batch` is below 1, or a source cannot be listed, see `list_images`.
        """
        from .bulk.rows import Refusal  # not part of a Bento
        from .bulk.sources import list_images

        if batch < 1:
            raise InputError(f"batch={batch}: at least 1 is needed")
        images = list_images(map(str, [sources] if isinstance(sources, str | Path) else sources), column)
        for block in iter(lambda: list(itertools.islice(images, batch)), []):
            contents = [image.read() for image in block]
            answers = self._answers((one for one in contents if isinstance(one, bytes)), top_k, batch)
            for image, content in zip(block, contents, strict=True):
                if isinstance(content, Refusal):
                    yield image.name, InputError(f"{image.name}: {content.detail}")
                    continue
                answer = next(answers)
                if isinstance(answer, InputError):
                    answer = InputError(f"{image.name}: {str(answer).removeprefix('image: ')}")
                yield image.name, answer

    def _answers(self, images: Iterable[ImageSource], top_k: int, size: int) -> Iterator[Classification | InputError]:
        """For each image in order, its answer, or why it cannot be used. Yields a batch of `size` images at a time."""
        prepared = map(self._try_to_prepare, images)
        for batch in iter(lambda: list(itertools.islice(prepared, size)), []):
            pixels = [found for found in batch if not isinstance(found, InputError)]
            outputs = self.runtime.infer(np.stack(pixels)).each() if pixels else iter(())
            for found in batch:
                yield found if isinstance(found, InputError) else self.classify(*next(outputs), top_k)

    def _try_to_prepare(self, image: ImageSource) -> Pixels | InputError:
        try:
            return self.prepare(Path(image) if isinstance(image, str) else image)
        except InputError as error:
            if isinstance(image, str | Path) and str(image) not in str(error):
                return InputError(f"{image}: {error}")
            return error


def load_predictor(
    model: str | Path, device: str = "auto", precision: str | None = None, threads: int | None = None
) -> Predictor:
    """Load a checkpoint (.safetensors), an exported graph (.onnx), an engine or a bundle (a folder) for prediction.

    Args:
        model: its path, or the name of a trained model (`lipsformer models`, `hf:OWNER/NAME`).
        device: "auto", "cpu" or "cuda". If a faster runtime is passed over, stderr says why.
        precision: which of a bundle's precisions to run; by default the first that it was exported with, or bf16 in
            place of fp32 where that is faster (docs/export.md).
        threads: CPU threads for one inference; by default all cores.

    Raises:
        InputError: if `model` is none of these, or `device` or `precision` is not available.
        GateError: if the hash of a bundle's file differs from its manifest.
    """
    from lipsformer.checkpoints.pretrained import resolve_model  # not part of a Bento

    options = RuntimeOptions(device=device, precision=precision, threads=threads)
    predictor = _load(resolve_model(model), options)
    for fallback in predictor.fallbacks:
        say(fallback, always=True)
    return predictor


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Probabilities over the last dimension, computed in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    exponentials = np.exp(shifted)
    result: NDArray[np.float64] = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return result


def _load(path: Path, options: RuntimeOptions) -> Predictor:
    if path.is_dir():
        return Predictor.from_bundle(path, options)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; give a checkpoint, an .onnx file or a bundle")
    if options.precision is not None:
        raise InputError(f"--precision {options.precision}: only a bundle has precisions, and {path} is not a bundle")
    match path.suffix:
        case ".onnx":
            return Predictor.from_onnx(path, options)
        case ".engine":
            return Predictor.from_engine(path, options)
        case ".safetensors":
            return Predictor.from_checkpoint(path, options)
    raise InputError(f"{path}: not a model; give a checkpoint (.safetensors), an .onnx file or a bundle folder")


def _parse_acceptance(text: str | None) -> AcceptanceRule | None:
    return None if text is None else AcceptanceRule.from_bytes(base64.b64decode(text, validate=True))


def _check_fit(
    path: Path,
    runtime: GraphRuntime,
    classes: tuple[str, ...],
    preprocessing: Preprocessing,
    acceptance: AcceptanceRule | None,
) -> None:
    if acceptance is not None:
        if runtime.channels is None:
            raise InputError(f"{path}: its answers have thresholds, but it gives no features; export it again")
        try:
            acceptance.space.check_channels(runtime.channels)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
    if len(classes) != runtime.outputs:
        raise InputError(f"{path}: {len(classes)} class names for {runtime.outputs} outputs; export it again")
    if preprocessing.image_size != runtime.image_size:
        raise InputError(
            f"{path}: preprocessing gives {preprocessing.image_size} pixels to a graph of {runtime.image_size}; "
            "export it again"
        )
