"""The teacher of a distillation: any trained model, opened once and never changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lipsformer.bundle.class_names import read_classes
from lipsformer.bundle.manifest import read_manifest
from lipsformer.checkpoints.checkpoint import load_checkpoint
from lipsformer.checkpoints.pretrained import resolve_model
from lipsformer.inference.predictor import load_predictor
from lipsformer.inference.runtimes import OnnxRuntime
from lipsformer.system.atomic import sha256_of
from lipsformer.system.errors import InputError

from .hashes import hash_model, hash_weights
from .onnx_model import OnnxModel, is_exported
from .settings import Distillation, TeacherPreprocessing
from .timm_model import TIMM, load_timm
from .view import InputFormat

__all__ = ["Teacher", "open_teacher"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Teacher:
    """A trained model that answers images.

    Attributes:
        name: as the recipe gives it.
        infer: maps images in the format of `input` to outputs (B, K), logits or features, without gradients.
        input: the images it takes.
        outputs: K.
        classes: its class names in the order of its logits; none if they are unknown.
        sha256: of its file, of a bundle's manifest, or of a timm model's weights.
        classes_sha256: of the file with its class names, if there is one.
        runs_on: the runtime, for messages.
        parameters: their number, if known.
        metrics: of its training, if known.
    """

    name: str
    infer: Callable[[Tensor], Tensor]
    input: InputFormat
    outputs: int = 0
    classes: tuple[str, ...] = ()
    sha256: str
    classes_sha256: str | None = None
    runs_on: str
    parameters: int | None = None
    metrics: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        facts = [self.name, f"{self.parameters / 1e6:.1f} M parameters" if self.parameters else ""]
        facts += [f"{self.input.image_size} px", self.runs_on]
        if isinstance(top1 := self.metrics.get("top1"), float):
            facts.append(f"top-1 {top1:.1%} on {self.metrics.get('dataset', 'its validation set')}")
        return ", ".join(fact for fact in facts if fact)


def open_teacher(settings: Distillation, device: torch.device, dtype: torch.dtype) -> Teacher:
    """Opens the teacher of `settings` and asks it once, so that one that cannot be used is refused at the start.

    A checkpoint or a timm model runs in PyTorch on `device`, its weights in `dtype`; everything else in its runtime.

    Raises:
        InputError: if it is missing, cannot be loaded, lacks its preprocessing, or its outputs are not (batch, K) or
            not finite; or if `settings` record another hash.
        GateError: if the hash of a bundle's file differs from its manifest.
    """
    if settings.teacher.startswith(TIMM):
        teacher = _timm(settings, device, dtype)
    else:
        path = resolve_model(settings.teacher)
        if not path.exists():
            raise InputError(
                f"--teacher {settings.teacher}: no such file or folder; give a checkpoint, a bundle, an .onnx file "
                "or timm:NAME"
            )
        if settings.weights is not None:
            raise InputError(f"recipe: distillation: weights={settings.weights}: only a timm teacher takes them")
        if path.suffix == ".onnx" and not is_exported(path):
            teacher = _foreign(settings, path, device)
        else:
            teacher = _ours(settings, path, device, dtype)
    _check_hashes(settings, teacher)
    return dataclasses.replace(teacher, outputs=_outputs(teacher, settings, device))


def _ours(settings: Distillation, path: Path, device: torch.device, dtype: torch.dtype) -> Teacher:
    if settings.preprocessing is not None:
        raise InputError(
            f"--teacher {settings.teacher}: a LipsFormer model knows its preprocessing; "
            "remove [distillation.preprocessing] from the recipe"
        )
    if path.suffix == ".safetensors":
        checkpoint = load_checkpoint(path)
        model = checkpoint.model.to(device, dtype).requires_grad_(False)
        return Teacher(
            name=settings.teacher,
            infer=model.forward_features if settings.kind == "features" else model,
            input=InputFormat.of(checkpoint.preprocessing, dtype),
            classes=checkpoint.classes,
            sha256=hash_model(path),
            runs_on=f"PyTorch on {device.type}",
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            metrics=checkpoint.metrics,
        )
    # Not what is fastest here: a run that resumes on another CPU needs the same answers.
    precision = read_manifest(path).precisions[0] if path.is_dir() else None
    predictor = load_predictor(path, device.type, precision, torch.get_num_threads())
    runtime, most = predictor.runtime, predictor.max_batch

    def infer(pixels: Tensor) -> Tensor:
        parts = [runtime.infer(part.cpu().numpy()).logits for part in torch.split(pixels, most)]
        return torch.cat([torch.from_numpy(part) for part in parts])

    return Teacher(
        name=settings.teacher,
        infer=infer,
        input=InputFormat.pixels(predictor.preprocessing),
        classes=predictor.classes,
        sha256=hash_model(path),
        runs_on=f"{'ONNX Runtime' if isinstance(runtime, OnnxRuntime) else 'TensorRT'} on {device.type}",
        metrics=predictor.metrics,
    )


def _foreign(settings: Distillation, path: Path, device: torch.device) -> Teacher:
    table = settings.preprocessing or TeacherPreprocessing()
    if table.image_size is None:
        raise InputError(
            f"--teacher {settings.teacher}: not exported by LipsFormer; say what it takes in the recipe's "
            "[distillation.preprocessing]: image_size, mean, std, and the file of its classes"
        )
    model = OnnxModel(path, table, device, threads=torch.get_num_threads())
    if model.dtype == torch.uint8 and not (table.mean is None and table.std is None):
        raise InputError(f"--teacher {settings.teacher}: it takes uint8 pixels; remove mean and std from the recipe")
    if model.dtype != torch.uint8 and (table.mean is None or table.std is None):
        raise InputError(
            f"--teacher {settings.teacher}: [distillation.preprocessing] needs mean and std "
            "(mean = [0, 0, 0] and std = [1, 1, 1] if it takes unnormalized values)"
        )
    return Teacher(
        name=settings.teacher,
        infer=model,
        input=InputFormat(
            image_size=table.image_size,
            mean=table.mean or (0.0, 0.0, 0.0),
            std=table.std or (1.0, 1.0, 1.0),
            low=0.0 if model.dtype == torch.uint8 else table.input_range[0],
            high=255.0 if model.dtype == torch.uint8 else table.input_range[1],
            interpolation=table.interpolation or "bilinear",
            layout=table.layout,
            dtype=model.dtype,
        ),
        sha256=hash_model(path),
        runs_on=f"ONNX Runtime on {device.type}",
        **_classes(table),
    )


def _timm(settings: Distillation, device: torch.device, dtype: torch.dtype) -> Teacher:
    table = settings.preprocessing or TeacherPreprocessing()
    named = _classes(table)
    model, found = load_timm(settings, len(named.get("classes", ())) or None)
    model = model.to(device, dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Teacher(
        name=settings.teacher,
        infer=model,
        input=dataclasses.replace(found, dtype=dtype),
        sha256=hash_weights(model.state_dict()),
        runs_on=f"PyTorch on {device.type}",
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        **named,
    )


def _classes(table: TeacherPreprocessing) -> dict[str, Any]:
    """The class names of a teacher that does not know them, and their hash, if the recipe names their file."""
    if table.classes is None:
        return {}
    path = Path(table.classes)
    return {"classes": read_classes(path), "classes_sha256": sha256_of(path)}


def _check_hashes(settings: Distillation, teacher: Teacher) -> None:
    recorded = settings.preprocessing.classes_sha256 if settings.preprocessing else None
    for what, wanted, found in (
        (f"--teacher {settings.teacher}", settings.sha256, teacher.sha256),
        (f"--teacher {settings.teacher}: its class names", recorded, teacher.classes_sha256),
    ):
        if wanted is not None and wanted != found:
            raise InputError(
                f"{what}: changed since the training began (SHA-256 {found}, recorded {wanted}); "
                "restore the file, or train into another --output with a recipe without that hash"
            )


def _outputs(teacher: Teacher, settings: Distillation, device: torch.device) -> int:
    """The number of outputs, from a trial with two black images."""
    given, size = teacher.input, teacher.input.image_size
    shape = (2, size, size, 3) if given.layout == "nhwc" else (2, 3, size, size)
    try:
        with torch.no_grad():
            found = teacher.infer(torch.zeros(shape, dtype=given.dtype, device=device))
    except (RuntimeError, ValueError, AssertionError) as error:  # a network that does not take this size
        if isinstance(error, InputError):
            raise
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"--teacher {settings.teacher}: cannot take images of {size} px ({reason})") from None
    if found.ndim != 2 or len(found) != 2:
        raise InputError(
            f"--teacher {settings.teacher}: outputs of shape {list(found.shape)} for 2 images, [2, K] is needed"
        )
    if not found.isfinite().all():
        raise InputError(f"--teacher {settings.teacher}: its outputs for a black image are not finite; check the model")
    if settings.kind == "logits" and teacher.classes and len(teacher.classes) != found.shape[1]:
        raise InputError(
            f"--teacher {settings.teacher}: {len(teacher.classes)} class names for {found.shape[1]} outputs; "
            "give one per output, in order"
        )
    return found.shape[1]
