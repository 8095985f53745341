"""Names that stand for the path of a model: trained models of the package, and bundles in BentoML's model store."""

from __future__ import annotations

from pathlib import Path

__all__ = ["PRETRAINED", "resolve_model"]

PREFIX = "bentoml:"
FOLDER = Path(__file__).parents[1] / "checkpoints" / "weights"
PRETRAINED = {"lipsformer_cifar10": FOLDER / "lipsformer_cifar10.safetensors"}


def resolve_model(model: str | Path) -> Path:
    """Resolve the name of a trained model to its checkpoint; any other `model` is a path and is returned unchanged.

    `bentoml:NAME` and `bentoml:NAME:VERSION` name bundles in BentoML's model store. An existing file or folder of the
    same name takes precedence. Commands and the public API resolve names; everything below takes a path.

    Raises:
        InputError: if the store has no such bundle.
    """
    path, name = Path(model), str(model)
    if not path.exists() and name.startswith(PREFIX):
        from .store import stored_bundle

        return stored_bundle(name.removeprefix(PREFIX))
    return path if path.exists() else PRETRAINED.get(name, path)
