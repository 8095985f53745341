"""The state of a training: what is needed to go on as if it had never stopped. Tensors and JSON, no pickle.

RUN/state.safetensors is replaced whole after each epoch. Its metadata holds the recipe and a fingerprint of the
dataset's listing, so that a run is never resumed as another one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from lipsformer.datasets import ImageFolder, Split
from lipsformer.errors import InputError
from lipsformer.network import LipsFormer
from lipsformer.outputs import publish_file

from .recipe import Recipe

__all__ = ["SavedState", "TrainingState", "fingerprint", "read_state", "save_state"]

METADATA_KEY = "lipsformer_training"
FORMAT = 1
MODEL, AVERAGE, OPTIMIZER, CONFUSION = "model.", "average.", "optimizer.", "best_confusion"


@dataclasses.dataclass(kw_only=True)
class TrainingState:
    """Everything that changes while a model trains.

    `history` has one record per finished epoch (the lines of metrics.jsonl); `best_confusion` is the confusion matrix
    (K, K), rows true and columns predicted, of the best epoch.
    """

    model: LipsFormer
    average: AveragedModel
    optimizer: torch.optim.AdamW
    step: int = 0
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    best_confusion: Tensor | None = None
    skipped_in_a_row: int = 0  # not saved: a resumed run is given the full number of tries again

    @property
    def epoch(self) -> int:
        """Number of finished epochs."""
        return len(self.history)

    @property
    def best(self) -> dict[str, Any] | None:
        """The record of the first epoch with the highest validation accuracy."""
        return max(self.history, key=lambda record: record["val_top1"], default=None)

    def finish_epoch(self, record: dict[str, Any], confusion: Tensor) -> None:
        """Takes in an epoch's record and the confusion matrix of its validation."""
        self.history.append(record)
        if self.best is record:
            self.best_confusion = confusion

    def restore(self, saved: SavedState) -> None:
        """Goes back to what was saved.

        Raises:
            InputError: if the tensors do not fit this model and optimizer.
        """
        try:
            self.model.load_state_dict(_below(MODEL, saved.tensors))
            self.average.load_state_dict(_below(AVERAGE, saved.tensors))
            moments: dict[int, dict[str, Tensor]] = {}
            for name, tensor in _below(OPTIMIZER, saved.tensors).items():
                index, _, key = name.partition(".")
                moments.setdefault(int(index), {})[key] = tensor
            self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        except (RuntimeError, ValueError, KeyError) as error:
            problem = " ".join(str(error).split())[:300]
            raise InputError(f"{saved.path}: does not fit its recipe's model: {problem}") from None
        self.step, self.history = saved.step, list(saved.history)
        self.best_confusion = saved.tensors.get(CONFUSION)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SavedState:
    """The content of a state file, not yet in a model."""

    path: Path
    recipe: Recipe
    dataset: str
    step: int
    history: list[dict[str, Any]]
    tensors: dict[str, Tensor]


def fingerprint(dataset: ImageFolder) -> str:
    """SHA-256 of the classes, file names and labels of both splits; where the dataset lies makes no difference."""

    def listing(split: Split) -> list[tuple[str, int]]:
        return list(zip(split.names(), split.labels.tolist(), strict=True))

    content = [dataset.classes, listing(dataset.train), listing(dataset.validation)]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def save_state(path: Path, state: TrainingState, recipe: Recipe, dataset: str) -> None:
    """Writes `state` whole or not at all. `dataset` is its fingerprint."""
    tensors = {MODEL + name: tensor for name, tensor in state.model.state_dict().items()}
    tensors |= {AVERAGE + name: tensor for name, tensor in state.average.state_dict().items()}
    for index, moments in state.optimizer.state_dict()["state"].items():
        tensors |= {f"{OPTIMIZER}{index}.{key}": tensor for key, tensor in moments.items()}
    if state.best_confusion is not None:
        tensors[CONFUSION] = state.best_confusion
    metadata = {
        "format": FORMAT,
        "recipe": recipe.to_dict(),
        "dataset": dataset,
        "step": state.step,
        "history": state.history,
    }
    copies = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with publish_file(path) as draft:
        save_file(copies, draft, metadata={METADATA_KEY: json.dumps(metadata)})


def read_state(path: Path) -> SavedState:
    """Reads a state file.

    Raises:
        InputError: if it is cut off, damaged, from another version, or not a training state.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {})[METADATA_KEY])
            if metadata["format"] != FORMAT:
                raise InputError(
                    f"{path}: state format {metadata['format']}, this version reads {FORMAT}; "
                    "resume with the version that wrote it"
                )
            return SavedState(
                path=path,
                recipe=Recipe.from_dict(metadata["recipe"]),
                dataset=metadata["dataset"],
                step=metadata["step"],
                history=metadata["history"],
                tensors={name: file.get_tensor(name) for name in file.keys()},  # noqa: SIM118
            )
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a readable state ({error}); train again into another --output") from None
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: not a training state ({type(error).__name__}: {error}); train again") from None


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
