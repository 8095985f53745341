"""The [distillation] table of a recipe, as validated data."""

from __future__ import annotations

import functools
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, field_validator, model_validator
from pydantic.dataclasses import dataclass

from lipsformer.system.validation import one_line_errors

__all__ = ["Distillation", "DistillationTable", "TeacherPreprocessing"]

Positive = Annotated[float, Field(gt=0)]
PositiveShare = Annotated[float, Field(gt=0, le=1)]
# TOML and JSON have lists where the fields promise tuples.
Color = Annotated[tuple[float, float, float], Field(strict=False)]
PositiveColor = Annotated[tuple[Positive, Positive, Positive], Field(strict=False)]
Range = Annotated[tuple[float, float], Field(strict=False)]

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@functools.partial(one_line_errors, what="preprocessing", ranges=False)
@dataclass(frozen=True, kw_only=True, config=STRICT)
class TeacherPreprocessing:
    """What a teacher that is not a LipsFormer model takes and answers.

    Attributes:
        image_size: side of its square images, in pixels.
        mean: of each RGB channel, in units of `input_range`.
        std: of each RGB channel, in units of `input_range`.
        interpolation: how the student's crop is resized to `image_size`.
        layout: of its input, "nchw" or "nhwc".
        input_range: values of black and white before `mean` and `std`.
        classes: a file with its class names in order, one per line or a JSON list.
        output: name of the graph's output to use, if it has several.
        classes_sha256: hash of `classes`; a training records it.

    Raises:
        InputError: if a value is unknown or invalid.
    """

    image_size: Annotated[int, Field(ge=1)] | None = None
    mean: Color | None = None
    std: PositiveColor | None = None
    interpolation: Literal["bilinear", "bicubic"] | None = None
    layout: Literal["nchw", "nhwc"] = "nchw"
    input_range: Range = (0.0, 1.0)
    classes: str | None = None
    output: str | None = None
    classes_sha256: str | None = None

    @field_validator("input_range")
    @classmethod
    def _check_input_range(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] >= value[1]:
            raise ValueError(f"input_range={list(value)}: the first number must be below the second")
        return value


def _built(what: type[Any], value: Any) -> Any:
    """`value` as an instance of `what` if it is a table with text keys, so that its constructor names what is wrong."""
    return what(**value) if isinstance(value, dict) else value


@functools.partial(one_line_errors, what="distillation", ranges=False)
@dataclass(frozen=True, kw_only=True, config=STRICT)
class Distillation:
    """Settings of a distillation.

    Attributes:
        teacher: a checkpoint, bundle, engine or .onnx file, a trained model's name, or "timm:NAME".
        kind: what the student imitates: "logits" if it has the teacher's classes, or pooled "features".
        weight: share of the distillation loss in the training loss; the rest is the cross entropy with the labels.
        temperature: both softmaxes of "logits" divide by it.
        weights: a .safetensors file for a timm teacher, instead of timm's pretrained weights.
        preprocessing: of a teacher that is not a LipsFormer model.
        sha256: of the teacher; a training records it, and a recipe that has it accepts no other teacher.

    Raises:
        InputError: if a value is unknown, missing or invalid.
    """

    teacher: Annotated[str, Field(min_length=1)]
    kind: Literal["logits", "features"] = "logits"
    weight: PositiveShare = 0.9
    temperature: Positive = 2.0
    weights: str | None = None
    preprocessing: (
        Annotated[TeacherPreprocessing, BeforeValidator(functools.partial(_built, TeacherPreprocessing))] | None
    ) = None
    sha256: str | None = None

    @model_validator(mode="after")
    def _check_weight(self) -> Distillation:
        if self.kind == "features" and self.weight == 1:
            raise ValueError('weight=1: with kind = "features" nothing would train the classifier; set it below 1')
        return self


DistillationTable = Annotated[Distillation, BeforeValidator(functools.partial(_built, Distillation))]
