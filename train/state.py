"""Training state and its file: everything needed to resume bit-exactly, as tensors and JSON, without pickle.

A state file's metadata holds the recipe and a fingerprint of the dataset's listing, so that a run is never resumed as
a different one. It also holds a hash of everything else, so that damage is noticed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from lipsformer.datasets import DatasetOptions, ImageDataset
from lipsformer.evaluation.predictions import Predictions
from lipsformer.images.preprocessing import Preprocessing
from lipsformer.model.blocks import LipsFormer
from lipsformer.system.atomic import atomic_write
from lipsformer.system.errors import InputError
from lipsformer.train.optim.optimizers import Optimizers

from .metrics import EpochMetrics, EpochSums
from .recipe import Recipe

__all__ = ["SavedState", "TrainingState", "fingerprint", "read_state", "save_state"]

METADATA_KEY = "lipsformer_training"
FORMAT = 2
MODEL, AVERAGE, OPTIMIZERS, BEST, PROJECTION = "model.", "average.", "optimisers.", "best.", "projection."
OUTCOMES = ("predicted", "rank", "loss", "confidence")  # saved from the best epoch's validation


@dataclasses.dataclass(kw_only=True)
class TrainingState:
    """Everything that changes while a model trains.

    `network` is called with images: the model itself or, with a teacher, the student, or the DistributedDataParallel
    wrapper of these. `projection` is the student's, if it imitates features. `history` has the metrics of each finished
    epoch, `sums` those of the unfinished one. `best_outcomes` are the validation predictions of the best epoch.
    `bound` is the Lipschitz bound that the margin loss uses, computed at every 50th step. By the random `run_id`, a
    tracker finds the record of a resumed run.
    """

    model: LipsFormer
    network: nn.Module
    average: AveragedModel
    optimizers: Optimizers
    step: int = 0
    history: list[EpochMetrics] = dataclasses.field(default_factory=list)
    sums: EpochSums
    best_outcomes: Predictions | None = None
    skipped_in_a_row: int = 0
    bound: float | None = None
    projection: nn.Linear | None = None
    run_id: str = dataclasses.field(default_factory=lambda: secrets.token_hex(8))

    @property
    def epoch(self) -> int:
        """Number of finished epochs."""
        return len(self.history)

    @property
    def skipped(self) -> int:
        """Number of steps skipped so far."""
        return sum((epoch.skipped_steps for epoch in self.history), self.sums.skipped)

    @property
    def best(self) -> EpochMetrics | None:
        """The first epoch with the highest validation accuracy."""
        return max(self.history, key=lambda epoch: epoch.val_top1, default=None)

    def finish_epoch(self, epoch: EpochMetrics, outcomes: Predictions) -> None:
        """Appends an epoch to the history and clears the sums."""
        self.history.append(epoch)
        self.sums = EpochSums(self.sums.steps)
        if self.best is epoch:
            self.best_outcomes = outcomes

    def load(self, saved: SavedState, labels: np.ndarray[Any, np.dtype[np.int64]]) -> None:
        """Restores a saved state. `labels` are those of the validation images.

        Raises:
            InputError: if the tensors do not fit this model and optimizer.
        """
        try:
            self.model.load_state_dict(_below(MODEL, saved.tensors))
            self.average.load_state_dict(_below(AVERAGE, saved.tensors))
            if self.projection is not None:
                self.projection.load_state_dict(_below(PROJECTION, saved.tensors))
            self.optimizers.load_state_dict(_below(OPTIMIZERS, saved.tensors))
            self.sums = EpochSums.from_dict(saved.sums)
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            problem = " ".join(str(error).split())[:300]
            raise InputError(f"{saved.path}: does not fit its recipe's model: {problem}") from None
        self.step, self.history, self.skipped_in_a_row = saved.step, list(saved.history), saved.skipped_in_a_row
        self.run_id = saved.run_id or self.run_id
        self.bound = saved.bound
        if best := _below(BEST, saved.tensors):
            arrays = {name: best[name].numpy() for name in OUTCOMES}
            self.best_outcomes = Predictions(labels=labels, classes=self.model.config.num_classes, **arrays)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SavedState:
    """The content of a state file, not yet loaded into a model. Older files have no `preprocessing` and no `run_id`."""

    path: Path
    recipe: Recipe
    preprocessing: dict[str, Any] | None
    dataset: str
    options: DatasetOptions
    step: int
    history: list[EpochMetrics]
    sums: dict[str, Any]
    skipped_in_a_row: int
    run_id: str | None
    bound: float | None
    tensors: dict[str, Tensor]


def fingerprint(dataset: ImageDataset) -> str:
    """SHA-256 of the classes, file names and labels of both splits. It does not depend on where the dataset is."""
    digest = hashlib.sha256(json.dumps(dataset.classes).encode())
    for split in (dataset.train, dataset.validation):
        for name in split.names():
            digest.update(name.encode("utf-8", "surrogateescape") + b"\0")
        digest.update(np.asarray(split.labels, dtype=np.int64).tobytes())
    return digest.hexdigest()


def save_state(
    path: Path,
    state: TrainingState,
    recipe: Recipe,
    preprocessing: Preprocessing,
    dataset: str,
    options: DatasetOptions,
) -> None:
    """Writes `state` atomically. `dataset` is the fingerprint of its dataset, which was opened with `options`."""
    tensors = {MODEL + name: tensor for name, tensor in state.model.state_dict().items()}
    tensors |= {AVERAGE + name: tensor for name, tensor in state.average.state_dict().items()}
    tensors |= {OPTIMIZERS + name: tensor for name, tensor in state.optimizers.state_dict().items()}
    if state.projection is not None:
        tensors |= {PROJECTION + name: tensor for name, tensor in state.projection.state_dict().items()}
    if state.best_outcomes is not None:
        tensors |= {BEST + name: torch.from_numpy(getattr(state.best_outcomes, name)) for name in OUTCOMES}
    copies = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {
        "format": FORMAT,
        "recipe": recipe.to_dict(),
        "preprocessing": preprocessing.to_dict(),
        "dataset": dataset,
        "dataset_options": options.to_dict(),
        "step": state.step,
        "history": [epoch.to_dict() for epoch in state.history],
        "sums": state.sums.to_dict(),
        "skipped_in_a_row": state.skipped_in_a_row,
        "run_id": state.run_id,
        "bound": state.bound,
    }
    signed = {**metadata, "sha256": _digest(metadata, copies)}
    with atomic_write(path) as draft:
        draft.write_bytes(save_tensors(copies, {METADATA_KEY: json.dumps(signed)}))


def read_state(path: Path, content: bytes) -> SavedState:
    """Parses the `content` of a state file. `path` is for messages.

    Raises:
        InputError: if the file is truncated, damaged, from another version, or not a training state.
    """
    try:
        tensors = load_tensors(content)
        metadata = json.loads(_metadata(content)[METADATA_KEY])
        if metadata["format"] != FORMAT:
            raise InputError(
                f"{path}: state format {metadata['format']}, this version reads {FORMAT}; "
                "resume with the version that wrote it"
            )
        if metadata.pop("sha256") != _digest(metadata, tensors):
            raise InputError(f"{path}: damaged, its content does not have the hash it was saved with")
        return SavedState(
            path=path,
            recipe=Recipe.from_dict(metadata["recipe"]),
            preprocessing=metadata.get("preprocessing"),
            dataset=metadata["dataset"],
            options=DatasetOptions.from_dict(metadata.get("dataset_options", {})),
            step=metadata["step"],
            history=[EpochMetrics(**epoch) for epoch in metadata["history"]],
            sums=metadata["sums"],
            skipped_in_a_row=metadata["skipped_in_a_row"],
            run_id=metadata.get("run_id"),
            bound=metadata.get("bound"),
            tensors=tensors,
        )
    except SafetensorError as error:
        raise InputError(f"{path}: not a readable state ({error})") from None
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: not a training state ({type(error).__name__}: {error})") from None


def _metadata(content: bytes) -> Mapping[str, str]:
    # The format's own layout: the header's length in 8 bytes, little-endian, then the header in JSON.
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return header.get("__metadata__", {})  # type: ignore[no-any-return]


def _digest(metadata: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
