"""The distillation loss: what the teacher answers to a student's images, and how far the student is from it."""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from lipsformer.bundle.class_names import normalized
from lipsformer.images.preprocessing import Preprocessing
from lipsformer.system.errors import InputError

from .settings import Distillation
from .view import TeacherView

if TYPE_CHECKING:  # its runtimes and ONNX are imported only to open one
    from .teacher import Teacher

__all__ = ["Distiller", "TeacherError"]

NAMED = 3  # classes named in a message


class TeacherError(InputError):
    """The teacher's outputs for the images of a step were not finite."""

    def __init__(self, step: int, teacher: Teacher) -> None:
        super().__init__(
            f"step {step}: outputs of the teacher {teacher.name} are not finite; check its preprocessing "
            "and its precision"
        )


class Distiller:
    """Teaches a student with `classes` and `preprocessing` on `device`.

    With kind "logits", the loss is the Kullback-Leibler divergence from the teacher's softmax to the student's, both at
    the temperature T, times T² (Hinton et al. 2015). Classes are matched by name; the teacher's others are dropped
    before its softmax.

    With "features", it is the mean squared error between a learned linear projection of the student's pooled features
    and the teacher's, each image's standardized to mean 0 and variance 1 (as in Wei et al. 2022).

    Raises:
        InputError: if the teacher lacks one of the classes, or its class names are unknown or not unique.
    """

    def __init__(
        self,
        settings: Distillation,
        teacher: Teacher,
        classes: Sequence[str],
        preprocessing: Preprocessing,
        device: torch.device,
    ) -> None:
        self.teacher = teacher
        self.weight, self.temperature = settings.weight, settings.temperature
        self.view = TeacherView(preprocessing, teacher.input).to(device)
        self.columns = (
            torch.tensor(match_classes(teacher, classes), device=device) if settings.kind == "logits" else None
        )

    @property
    def features(self) -> int | None:
        """The number of features to imitate; None for logits."""
        return self.teacher.outputs if self.columns is None else None

    def __str__(self) -> str:
        if self.columns is None:
            return f"teacher {self.teacher}: {self.teacher.outputs} features"
        dropped = self.teacher.outputs - len(self.columns)
        others = f", its other {dropped} are dropped" if dropped else ""
        return f"teacher {self.teacher}: {len(self.columns)} classes matched by name{others}"

    def targets(self, images: Tensor, precision: contextlib.AbstractContextManager[object]) -> Tensor:
        """The teacher's outputs (B, K) for the student's normalized images (B, 3, S, S), without gradients.

        They have the student's classes in its order, or are standardized features, in float32 or the images' dtype. A
        network computes them in `precision`.
        """
        with torch.no_grad():
            seen = self.view(images)
            with precision:
                outputs = self.teacher.infer(seen)
            outputs = outputs.to(images.device, torch.promote_types(images.dtype, torch.float32))
            if self.columns is None:
                return F.layer_norm(outputs, outputs.shape[1:])
            return outputs[:, self.columns]

    def loss(self, answers: Tensor, targets: Tensor) -> Tensor:
        """The distillation loss, summed over the images, of a student's `answers` (B, K): logits or projections."""
        answers = answers.to(targets.dtype)
        if self.columns is None:
            return (answers - targets).square().mean(dim=1).sum()
        student, teacher = (F.log_softmax(logits / self.temperature, dim=1) for logits in (answers, targets))
        return F.kl_div(student, teacher, reduction="sum", log_target=True) * self.temperature**2


def match_classes(teacher: Teacher, classes: Sequence[str]) -> list[int]:
    """For each class of the student, its index among the teacher's.

    Raises:
        InputError: as `Distiller`.
    """
    if not teacher.classes:
        raise InputError(
            f"--teacher {teacher.name}: its class names are unknown; name their file as classes in the recipe's "
            '[distillation.preprocessing], or set distillation.kind = "features"'
        )
    known = collections.Counter(normalized(name) for name in teacher.classes)
    wanted = [normalized(name) for name in classes]
    if missing := [name for name in wanted if name not in known]:
        names = ", ".join(map(repr, missing[:NAMED])) + (", ..." if len(missing) > NAMED else "")
        raise InputError(
            f"--teacher {teacher.name}: it does not know {len(missing)} of {len(wanted)} classes ({names}); "
            'for other classes set distillation.kind = "features"'
        )
    if twice := next((name for name in wanted if known[name] > 1), None):
        raise InputError(f"--teacher {teacher.name}: it has the class {twice!r} more than once; give them other names")
    index = {normalized(name): number for number, name in enumerate(teacher.classes)}
    return [index[name] for name in wanted]
