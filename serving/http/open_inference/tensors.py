"""The tensors of a model: what a request may send, and what it may ask for."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lipsformer.inference.predictor import softmax
from lipsformer.inference.runtimes import FEATURES_NAME, INPUT_NAME, LOGITS_NAME
from lipsformer.serving.pipeline.inference import Answered, InferencePipeline

__all__ = [
    "IMAGE",
    "PIXELS",
    "SCORES",
    "Datatype",
    "Tensor",
    "Values",
    "input_tensors",
    "output_tensors",
    "output_values",
]

Datatype = Literal["BOOL", "BYTES", "FP32", "FP64", "UINT8"]
Values = NDArray[np.float32] | NDArray[np.float64] | NDArray[np.bool_] | list[str]

PIXELS, IMAGE = INPUT_NAME, "image"
SCORES, LABELS, ACCEPTED, DISTANCE = "scores", "labels", "accepted", "distance"
ANY = -1  # in a shape: the number of images


class Tensor(NamedTuple):
    """A tensor as in the model's metadata."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return self._asdict()


def input_tensors(pipeline: InferencePipeline) -> tuple[Tensor, ...]:
    """The inputs, of which a request has one: the network's own pixels, or encoded images."""
    side = pipeline.manifest.preprocessing.image_size
    return Tensor(PIXELS, "UINT8", (ANY, side, side, 3)), Tensor(IMAGE, "BYTES", (ANY,))


def output_tensors(pipeline: InferencePipeline) -> tuple[Tensor, ...]:
    """The outputs. Features need a graph that gives them, and the last two a rule by which answers are accepted."""
    classes, channels = len(pipeline.manifest.classes), pipeline.channels
    tensors = [
        Tensor(LOGITS_NAME, "FP32", (ANY, classes)),
        Tensor(SCORES, "FP64", (ANY, classes)),
        Tensor(LABELS, "BYTES", (ANY,)),
    ]
    if channels is not None:
        tensors.append(Tensor(FEATURES_NAME, "FP32", (ANY, channels)))
    if pipeline.predictor.acceptance is not None:
        tensors += Tensor(ACCEPTED, "BOOL", (ANY,)), Tensor(DISTANCE, "FP64", (ANY,))
    return tuple(tensors)


def output_values(name: str, answers: list[Answered]) -> Values:
    """The values of one output for all images; labels as text."""
    found = [answer.classification for answer in answers]
    match name:
        case "logits":
            return np.stack([answer.outputs.logits for answer in answers])
        case "scores":  # of each image alone, as in /classify
            return np.stack([softmax(answer.outputs.logits) for answer in answers])
        case "features":
            return np.stack([answer.outputs.features for answer in answers if answer.outputs.features is not None])
        case "labels":
            return [classification[0].label for classification in found]
        case "accepted":
            return np.array([bool(classification.accepted) for classification in found])
        case _:
            return np.array([classification.distance for classification in found], np.float64)
