"""The header of a checkpoint: its metadata, which has all that is needed to use the weights."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from lipsformer.bundle.acceptance import AcceptanceThresholds, check_temperature
from lipsformer.bundle.class_names import parse_class_names
from lipsformer.bundle.reference import ReferenceHistograms
from lipsformer.images.preprocessing import Preprocessing
from lipsformer.model.config import ModelConfig, config_from_dict
from lipsformer.system.errors import InputError

from .save import CHECKPOINT_KEY, FORMAT

__all__ = ["CheckpointHeader", "open_checkpoint", "parse_header"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointHeader:
    """A checkpoint without its weights.

    `temperature` calibrates the scores: logits are divided by it. `thresholds` say when an answer is accepted.
    `reference` has the answers to the photos of the calibration.
    """

    config: ModelConfig
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    metrics: dict[str, Any]
    temperature: float = 1.0
    thresholds: AcceptanceThresholds | None = None
    reference: ReferenceHistograms | None = None


@contextlib.contextmanager
def open_checkpoint(path: Path) -> Iterator[Any]:
    """Opens a checkpoint with safetensors, which reads no tensor yet.

    Raises:
        InputError: if there is no such file, or it is cut off or no safetensors file.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint; give the .safetensors file that `lipsformer train` wrote")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, json.JSONDecodeError, RecursionError, OSError) as error:
        raise InputError(f"{path}: not a readable checkpoint ({error}); is the file whole?") from None


def parse_header(path: Path, file: Any) -> CheckpointHeader:
    """The header of an open checkpoint; `path` is for messages.

    Raises:
        InputError: if it is of another format, damaged, or contradicts itself.
    """
    text = (file.metadata() or {}).get(CHECKPOINT_KEY)
    if text is None:
        raise InputError(
            f"{path}: a safetensors file, but not a LipsFormer checkpoint (no '{CHECKPOINT_KEY}' metadata)"
        )
    metadata = json.loads(text)
    try:
        found = metadata["format"]
        if found == FORMAT:
            config = config_from_dict(metadata["config"])
            preprocessing = Preprocessing.from_dict(metadata["preprocessing"])
            classes, metrics = parse_class_names(metadata["classes"]), dict(metadata["metrics"])
            temperature, thresholds = metadata.get("temperature", 1.0), metadata.get("acceptance")
            check_temperature(temperature)
            reference = ReferenceHistograms.from_dict(metadata.get("reference"))
            thresholds = None if thresholds is None else AcceptanceThresholds(**thresholds)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: its metadata cannot be read ({error}); train or convert it again") from None
    if found != FORMAT:
        raise InputError(f"{path}: checkpoint format {found}, this version reads {FORMAT}; update lipsformer")
    if len(classes) != config.num_classes:
        raise InputError(
            f"{path}: {len(classes)} class names for {config.num_classes} outputs; train or convert it again"
        )
    if preprocessing.image_size != config.image_size:
        raise InputError(
            f"{path}: preprocessing gives {preprocessing.image_size} pixels to a model of {config.image_size}; "
            "train or convert it again"
        )
    return CheckpointHeader(
        config=config,
        classes=classes,
        preprocessing=preprocessing,
        metrics=metrics,
        temperature=temperature,
        thresholds=thresholds,
        reference=reference,
    )
