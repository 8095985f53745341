"""Writing checkpoints."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as save_tensors
from torch import Tensor

from lipsformer.bundle.acceptance import AcceptanceRule
from lipsformer.bundle.reference import ReferenceHistograms
from lipsformer.images.preprocessing import Preprocessing
from lipsformer.model.config import ModelConfig
from lipsformer.system.atomic import atomic_write

__all__ = ["CHECKPOINT_KEY", "FORMAT", "SPACE_ARRAYS", "SPACE_PREFIX", "save_checkpoint"]

CHECKPOINT_KEY = "lipsformer"  # of our JSON among the metadata of the safetensors file
FORMAT = 1
SPACE_PREFIX, SPACE_ARRAYS = "acceptance.", ("means", "whitening")  # tensors next to the weights


def save_checkpoint(
    path: Path,
    *,
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    classes: Sequence[str],
    preprocessing: Preprocessing,
    metrics: Mapping[str, Any],
    temperature: float = 1.0,
    acceptance: AcceptanceRule | None = None,
    reference: ReferenceHistograms | None = None,
) -> None:
    """Writes a checkpoint atomically. `weights` is the state dict of the model of `config`."""
    metadata = {
        "format": FORMAT,
        "config": config.to_dict(),
        "classes": list(classes),
        "preprocessing": preprocessing.to_dict(),
        "metrics": dict(metrics),
        "temperature": temperature,
        "acceptance": None if acceptance is None else acceptance.thresholds.to_dict(),
        "reference": None if reference is None else reference.to_dict(),
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    if acceptance is not None:
        for name in SPACE_ARRAYS:
            tensors[SPACE_PREFIX + name] = torch.from_numpy(getattr(acceptance.space, name))
    content = save_tensors(tensors, metadata={CHECKPOINT_KEY: json.dumps(metadata)})
    with atomic_write(path) as draft:
        draft.write_bytes(content)  # not save_file: if killed, it leaves a temporary file that nobody removes
