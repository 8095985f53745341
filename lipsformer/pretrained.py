"""Trained models that come with the package; their names can be given wherever a model's path can."""

from __future__ import annotations

from pathlib import Path

__all__ = ["PRETRAINED", "resolve_model"]

FOLDER = Path(__file__).parent / "weights"
PRETRAINED = {"lipsformer_cifar10": FOLDER / "lipsformer_cifar10.safetensors"}


def resolve_model(model: str | Path) -> Path:
    """The path of `model`: a trained model's checkpoint if it is the name of one, else `model` itself.

    A file or folder of that name in the working directory goes first.
    """
    path = Path(model)
    return path if path.exists() else PRETRAINED.get(str(model), path)
