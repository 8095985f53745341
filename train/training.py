"""One training: model, data and state, the loop over its epochs, and the files of each epoch."""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from lipsformer.checkpoints.save import save_checkpoint
from lipsformer.datasets import DatasetOptions, ImageDataset
from lipsformer.evaluation.report.write import write_report
from lipsformer.images.preprocessing import Preprocessing
from lipsformer.model.pixel_norm import PixelNormalize
from lipsformer.system.errors import InputError
from lipsformer.train.augment.pipeline import Augmentation
from lipsformer.train.data.dataset import (
    Batch,
    TrainingBatchSampler,
    TrainingImages,
    ValidationImages,
    ValidationLoader,
    load_training,
)
from lipsformer.train.data.sampler import EpochSampler
from lipsformer.train.distillation.distiller import Distiller
from lipsformer.train.listeners.listener import Listener, RunInfo
from lipsformer.train.optim.schedule import learning_rate

from .distributed import DistributedContext
from .initial_state import initial_state
from .initial_weights import StartingPoint
from .loop import TrainContext, train_epoch
from .metrics import EpochMetrics, StepMetrics
from .recipe import Recipe
from .run_folder import BEST, LAST, UNREADABLE, RunFolder
from .signals import StopRequest, stopped
from .unreadable import lost_classes
from .validation import Validation, validate

__all__ = ["Training"]


class Training:
    """The training of `recipe` on `dataset`, whose fingerprint is `digest`, in `folder`.

    `options` are those that `dataset` was opened with. `note` is what to say about the preprocessing when it starts.
    `distiller` has the teacher of the recipe's distillation, if there is one.
    """

    def __init__(
        self,
        recipe: Recipe,
        start: StartingPoint,
        preprocessing: Preprocessing,
        dataset: ImageDataset,
        digest: str,
        folder: RunFolder,
        distributed: DistributedContext,
        options: DatasetOptions,
        *,
        note: str = "",
        distiller: Distiller | None = None,
    ) -> None:
        self.recipe = recipe
        self.dataset = dataset
        self.digest = digest
        self.options = options
        self.folder = folder
        self.distributed = distributed
        self.title = f"{recipe.model['name']} on {dataset.root.resolve().name}"
        self.labels = np.asarray(dataset.validation.labels)
        self.preprocessing = preprocessing
        self.note = note
        sampler = EpochSampler(np.asarray(dataset.train.labels), recipe)
        sampler.check_shares(distributed.world_size)
        self.context = TrainContext(
            recipe=recipe,
            distributed=distributed,
            sampler=sampler,
            normalize=PixelNormalize(preprocessing).to(distributed.device, recipe.dtype),
            augmentation=Augmentation(
                rand_augment=recipe.rand_augment,
                mixup=recipe.mixup,
                cutmix=recipe.cutmix,
                random_erasing=recipe.random_erasing,
                label_smoothing=recipe.label_smoothing,
                classes=len(dataset.classes),
            ),
            distiller=distiller,
            std=preprocessing.std,
        )
        self.state = initial_state(recipe, start, dataset.classes, distributed, distiller, sampler.steps_per_epoch)
        self.unreadable = folder.unreadable() if distributed.is_main else set()
        self._reported = len(self.unreadable)
        self._noted: set[str] = set()  # of `unreadable`, what this process has met: the others may have been repaired
        self._listeners: Sequence[Listener] = ()

    @property
    def finished(self) -> bool:
        """Whether all epochs are done, or the last `patience` of them brought no improvement."""
        best, patience = self.state.best, self.recipe.patience
        stalled = best is not None and 0 < patience <= self.state.epoch - best.epoch
        return stalled or self.state.epoch >= self.recipe.epochs

    def train(self, stop: StopRequest, listeners: Sequence[Listener] = ()) -> None:
        """Trains to the end, or until a process is asked to stop. The main process has the `listeners`.

        Raises:
            StoppedError: if a process was asked to stop.
        """
        state = self.state
        batches, validation = self.training_batches(), self.validation_batches()
        if state.step == 0:
            self._begin()
        with self._listening(listeners if self.distributed.is_main else ()):
            while not self.finished:
                started = time.perf_counter()
                if not train_epoch(state, batches, self.context, stop, self._after_step):
                    self._save_state()
                    number = stop.signal or signal.SIGTERM  # another process was asked: the scheduler sends SIGTERM
                    raise stopped(self.folder.path, state.step, self.context.sampler.total, number)
                found = validate(state.average.module, validation, self.labels, self.context, self._after_batch)
                self._finish_epoch(found, started)

    def training_batches(self) -> Iterator[Batch]:
        """This process's share of the batches that are left to train on."""
        images = TrainingImages(self.dataset.train, self.recipe, self.preprocessing)
        keys = TrainingBatchSampler(self.context.sampler, self.distributed, start=self.state.step)
        return load_training(images, keys)

    def report(self) -> None:
        """Writes the evaluation report of the best epoch, if there is one, and lets the listeners finish."""
        best, outcomes, split = self.state.best, self.state.best_outcomes, self.dataset.validation
        try:
            if best is not None and outcomes is not None:
                title = f"{self.title}, epoch {best.epoch}"
                with self.folder.writing():
                    write_report(self.folder.path, outcomes, split, self.dataset.classes, self.preprocessing, title)
        finally:
            self._notify(lambda listener: listener.on_report(finished=self.finished))

    def _begin(self) -> None:
        """Makes the run resumable from its start, before anyone hears of it."""
        self._save_state()
        if self.distributed.is_main:
            self.folder.save_recipe(self.recipe)

    def validation_batches(self) -> ValidationLoader:
        images = ValidationImages(self.dataset.validation, self.preprocessing)
        return ValidationLoader(images, self.recipe, self.distributed)

    @contextlib.contextmanager
    def _listening(self, listeners: Sequence[Listener]) -> Iterator[None]:
        """Within the block, the listeners follow the training."""
        run = RunInfo(
            title=self.title,
            run_id=self.state.run_id,
            folder=self.folder,
            recipe=self.recipe,
            steps_per_epoch=self.context.sampler.steps_per_epoch,
            step=self.state.step,
            history=tuple(self.state.history),
            say=self._say,
        )
        self._listeners = listeners
        with contextlib.ExitStack() as stack:
            for listener in listeners:
                listener.on_begin(run)
                stack.callback(listener.on_end)
            self._introduce()
            yield

    def _notify(self, call: Callable[[Listener], None]) -> None:
        for listener in self._listeners:
            call(listener)

    def _say(self, text: str) -> None:
        self._notify(lambda listener: listener.on_message(text))

    def _introduce(self) -> None:
        train, validation = self.dataset.train, self.dataset.validation
        parameters = sum(parameter.numel() for parameter in self.state.model.parameters())
        self._say(
            f"training {self.recipe.model['name']}, {parameters / 1e6:.1f} M parameters, "
            f"{self.preprocessing.image_size} px, on {len(train)} images of {len(self.dataset.classes)} classes, "
            f"validating on {len(validation)} ({validation.name}): {self.recipe.epochs} epochs of "
            f"{self.context.sampler.steps_per_epoch} steps on {self.distributed}"
        )
        if self.context.distiller is not None:
            self._say(str(self.context.distiller))
        if self.note:
            self._say(self.note)
        if self.state.step:
            self._say(
                f"{self.folder.path}: resumed at step {self.state.step} of {self.context.sampler.total}, "
                f"after epoch {self.state.epoch} of {self.recipe.epochs}"
            )

    def _after_step(self, batch: Batch, step: StepMetrics) -> None:
        self._notify(lambda listener: listener.on_step(step))
        self._note_unreadable(batch)
        if step.step % self.recipe.save_every == 0:
            self._save_state()

    def _after_batch(self, batch: Batch, done: int, batches: int) -> None:
        self._notify(lambda listener: listener.on_validation(done, batches))
        self._note_unreadable(batch)

    def _note_unreadable(self, batch: Batch) -> None:
        if batch.unreadable and not self.unreadable:
            self._say(f"{batch.unreadable[0]}; it is left out, as others will be: {UNREADABLE} lists them")
        self.unreadable.update(batch.unreadable)
        self._noted.update(batch.unreadable)

    def _save_state(self) -> None:
        """Makes the run resumable from here."""
        self.unreadable = set(self.distributed.all_gather(sorted(self.unreadable)))
        self._noted = set(self.distributed.all_gather(sorted(self._noted)))
        if self.distributed.is_main:
            self.folder.save_unreadable(self.unreadable)
            self.folder.save_state(self.state, self.recipe, self.preprocessing, self.digest, self.options)

    def _finish_epoch(self, found: Validation, started: float) -> None:
        """Writes an epoch. The state comes last: if the process is killed before, the epoch's end is repeated."""
        state, predictions = self.state, found.predictions
        if not predictions.images:
            self._save_state()
            raise InputError(f"{self.dataset.root}: none of the images to validate on can be read; see {UNREADABLE}")
        epoch = EpochMetrics(
            epoch=state.epoch + 1,
            step=state.step,
            learning_rate=learning_rate(state.step - 1, self.context.sampler.total, self.recipe.peak_rate),
            **state.sums.means(),
            val_loss=predictions.mean_loss if math.isfinite(predictions.mean_loss) else None,
            val_top1=predictions.top1,
            val_top5=predictions.top5,
            val_images=predictions.images,
            seconds=round(time.perf_counter() - started, 2),
        )
        state.finish_epoch(epoch, predictions)
        if self.distributed.is_main:
            with self.folder.writing():
                self._save_checkpoint(LAST, epoch, found.temperature)
                if state.best is epoch:
                    self._save_checkpoint(BEST, epoch, found.temperature)
        try:
            self._notify(lambda listener: listener.on_epoch(epoch))
        finally:  # a listener that fails loses no epoch
            self._save_state()
        if len(self.unreadable) > self._reported:
            self._reported = len(self.unreadable)
            self._say(f"{self._reported} images unreadable so far, listed in {UNREADABLE}")
            for problem in self.lost():
                self._say(problem)

    def lost(self) -> list[str]:
        """A line for each split that has classes without a single readable image."""
        lines = []
        for split in (self.dataset.train, self.dataset.validation):
            if found := lost_classes(split, self._noted):
                names = ", ".join(map(repr, found[:3])) + (", ..." if len(found) > 3 else "")
                lines.append(
                    f"{self.dataset.root}: {split.name}: no image can be read of {len(found)} of {len(split.classes)} "
                    f"classes ({names}); repair the files in {UNREADABLE}"
                )
        return lines

    def _save_checkpoint(self, name: str, epoch: EpochMetrics, temperature: float) -> None:
        metrics: dict[str, Any] = {
            "dataset": self.dataset.root.resolve().name,
            "split": self.dataset.validation.name,
            "images": epoch.val_images,
            "epoch": epoch.epoch,
            "epochs": self.recipe.epochs,
            "top1": epoch.val_top1,
            "loss": epoch.val_loss,
            **self.options.held_out,
        }
        save_checkpoint(
            self.folder.path / name,
            config=self.state.model.config,
            weights=self.state.average.module.state_dict(),
            classes=self.dataset.classes,
            preprocessing=self.preprocessing,
            metrics=metrics,
            temperature=temperature,
        )
