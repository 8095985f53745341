"""What every upload of a checkpoint has: its file, checked, and the files next to it."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from lipsformer.checkpoints.checkpoint import Checkpoint, load_checkpoint
from lipsformer.checkpoints.pretrained import resolve_model
from lipsformer.system.errors import InputError

__all__ = ["CARD_FILE", "CONFIG_FILE", "config_text", "open_upload"]

CARD_FILE = "README.md"
CONFIG_FILE = "config.json"


def open_upload(model: str | Path) -> tuple[Path, Checkpoint]:
    """The file and the content of a checkpoint, or of a trained model by its name.

    Raises:
        InputError: if it cannot be read, or has weights that are not finite.
    """
    path = resolve_model(model)
    checkpoint = load_checkpoint(path)
    if not all(bool(torch.isfinite(value).all()) for value in checkpoint.model.state_dict().values()):
        raise InputError(f"{path}: has weights that are not finite; choose another checkpoint of its training")
    return path, checkpoint


def config_text(checkpoint: Checkpoint) -> str:
    """The content of `config.json`: the checkpoint's metadata, for readers other than this package."""
    entries = {
        "library_name": "lipsformer",
        "model": checkpoint.config.to_dict(),
        "classes": checkpoint.classes,
        "preprocessing": checkpoint.preprocessing.to_dict(),
        "metrics": dict(checkpoint.metrics),
    }
    return json.dumps(entries, indent=2, ensure_ascii=False) + "\n"
