"""Models that can be named wherever a model's path can be given: those that come with the package, and stored ones."""

from __future__ import annotations

from pathlib import Path

__all__ = ["PRETRAINED", "resolve_model"]

PREFIX = "bentoml:"
FOLDER = Path(__file__).parents[1] / "checkpoints" / "weights"
PRETRAINED = {"lipsformer_cifar10": FOLDER / "lipsformer_cifar10.safetensors"}


def resolve_model(model: str | Path) -> Path:
    """The path of `model`: a trained model's checkpoint if it is the name of one, else `model` itself.

    `bentoml:NAME` and `bentoml:NAME:VERSION` are bundles in BentoML's model store. A file or folder of that name in the
    working directory goes first.

    Raises:
        InputError: if the store has no such bundle.
    """
    path, name = Path(model), str(model)
    if not path.exists() and name.startswith(PREFIX):
        from .store import stored_bundle

        return stored_bundle(name.removeprefix(PREFIX))
    return path if path.exists() else PRETRAINED.get(name, path)
