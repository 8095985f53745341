"""A linear probe as a run: features once, a path of penalties, one head, and the files of an ordinary training."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from lipsformer.checkpoints.pretrained import is_trained
from lipsformer.datasets.split_names import split_of
from lipsformer.evaluation.calibration.temperature import fit_temperature
from lipsformer.evaluation.predictions import Predictions
from lipsformer.system import console
from lipsformer.system.errors import InputError
from lipsformer.train.data.dataset import Batch
from lipsformer.train.listeners.listener import Listener
from lipsformer.train.metrics import EpochSums, StepMetrics
from lipsformer.train.run_folder import CURVES, METRICS, UNREADABLE
from lipsformer.train.signals import StopRequest, stopped
from lipsformer.train.training import Training
from lipsformer.train.validation import Validation

from .features import Features, Views, compute_features
from .head import Head, Samples, fit_head
from .penalty import DEFAULT_PENALTY, PathPoint, best_point, measure, penalty_path
from .samples import Axes, Division, divide_in_folds, samples_of

__all__ = ["Probe"]


class Probe(Training):
    """A training whose only epoch fits the head to convergence, on features of the frozen network.

    The state before it is the initial one: a probe that was stopped starts again and gives the same bytes.
    """

    def train(self, stop: StopRequest, listeners: Sequence[Listener] = ()) -> None:
        """Fits the head. The main process has the `listeners`.

        Raises:
            InputError: if no image of a split can be read, or a feature is not finite.
            StoppedError: if the process was asked to stop.
        """
        if self.finished:
            return
        started = time.perf_counter()
        self.state.sums = EpochSums(1)  # the fit is the one step of the one epoch
        self._begin()
        with self._listening(listeners if self.distributed.is_main else ()):
            train, validation = self._features(stop)
            head = self._fit(train, validation, stop) if self.distributed.is_main else None
            self._set_head(head)
            self._finish_epoch(self._validation(validation), started)

    def _introduce(self) -> None:
        train, validation = self.dataset.train, self.dataset.validation
        self._say(
            f"linear probe of {self.recipe.model['name']}, {self.preprocessing.image_size} px, on {len(train)} images "
            f"of {len(self.dataset.classes)} classes in {self._views(fit=True).count} views, validating on "
            f"{len(validation)} ({validation.name}), on {self.distributed}"
        )
        if not is_trained(self.recipe.model["name"]):
            self._say(f"{self.recipe.model['name']} has no trained weights: these are the features of a random network")
        if self.note:
            self._say(self.note)

    def _views(self, *, fit: bool) -> Views:
        split = self.dataset.train if fit else self.dataset.validation
        return Views(split, self.recipe, self.preprocessing, crops=self.recipe.crops if fit else None)

    def _features(self, stop: StopRequest) -> tuple[Features, Features]:
        """The features of both splits."""
        both, model = (self._views(fit=True), self._views(fit=False)), self.state.model.eval()
        with console.track("computing features, images", sum(map(len, both))) as advance:

            def after_batch(batch: Batch) -> None:
                self._check_stop(stop)
                self._note_unreadable(batch)
                advance((len(batch.labels) + batch.missing) * self.distributed.world_size, "")

            train, validation = (compute_features(views, model, self.context, after_batch) for views in both)
        self._save_state()
        for features, use in ((train, "train"), (validation, "validate")):
            if not bool(features.readable.any()):
                listed = self.folder.path / UNREADABLE
                raise InputError(f"{self.dataset.root}: none of the images to {use} on can be read; see {listed}")
        return train, validation

    def _check_stop(self, stop: StopRequest) -> None:
        if stop.signal:
            raise stopped(self.folder.path, 0, 1, stop.signal)

    def _fit(self, train: Features, validation: Features, stop: StopRequest) -> Head:
        """Chooses the penalty, fits the head, and writes the path."""
        started, recipe = time.perf_counter(), self.recipe
        axes = Axes.of(train, self.distributed.device)
        samples = self._samples(train, np.asarray(self.dataset.train.labels), axes)
        if split_of(self.dataset.validation.name) == "test":
            divisions = divide_in_folds(samples, train.values.shape[1])
            held_out = f"{len(divisions)} folds of train"
        else:
            divisions = [Division(fitted=samples, held_out=self._samples(validation, self.labels, axes))]
            held_out = self.dataset.validation.name
        points: list[PathPoint] = []
        if divisions:

            def after_point(point: PathPoint) -> None:
                self._check_stop(stop)
                self._say(
                    f"penalty {point.penalty:g}: train loss {point.train_loss:.3f}, held-out loss "
                    f"{point.held_out_loss:.3f}, top-1 {point.held_out_top1:.1%}, {point.iterations} iterations, "
                    f"{point.seconds:.1f} s"
                )

            points = penalty_path(divisions, recipe.label_smoothing, after_point)
            penalty = best_point(points).penalty
            self._say(f"penalty {penalty:g} has the lowest loss on {held_out}")
        else:
            penalty = DEFAULT_PENALTY
            self._say(f"one image of each class, so that none can be held out: penalty {penalty:g}")
        self._write_path(points, held_out)
        head = fit_head(samples, penalty, label_smoothing=recipe.label_smoothing)
        if not head.converged:
            self._say(f"the head has not converged after {head.iterations} iterations; its loss is near the lowest")
        self._add_sums(head, samples, time.perf_counter() - started)
        return axes.head_before(head)

    def _samples(self, features: Features, labels: NDArray[np.int64], axes: Axes) -> Samples:
        return samples_of(features, labels, len(self.dataset.classes), axes, balanced=self.recipe.balanced)

    def _write_path(self, points: Sequence[PathPoint], held_out: str) -> None:
        from .curves import plot_path

        best = best_point(points) if points else None
        lines = [{**point.to_dict(), "held_out": held_out, "chosen": point is best} for point in points]
        self.folder.write(METRICS, "".join(json.dumps(line) + "\n" for line in lines))
        if points:
            with self.folder.writing():
                plot_path(self.folder.path / CURVES, points, self.title, held_out)

    def _add_sums(self, head: Head, samples: Samples, seconds: float) -> None:
        """Adds the fit to the epoch, as its step."""
        loss, top1 = measure(head, samples)
        images = len(samples.labels)
        self.state.sums.add(
            StepMetrics(
                epoch=1,
                step=1,
                images=images,
                loss_sum=loss * images,
                correct=top1 * images,
                grad_norm=0.0,
                learning_rate=0.0,
                seconds=seconds,
            )
        )

    def _set_head(self, head: Head | None) -> None:
        """Gives the networks of all processes the main process's head."""
        own = None if head is None else torch.column_stack((head.weight, head.bias)).cpu().numpy().tobytes()
        sent = np.frombuffer(self.distributed.broadcast(own) or b"", np.float64)
        values = torch.from_numpy(sent.copy()).view(len(self.dataset.classes), -1)
        self.state.model.head.load_state_dict({"weight": values[:, :-1], "bias": values[:, -1]})
        self.state.average.module.load_state_dict(self.state.model.state_dict())
        self.state.step = 1

    @torch.inference_mode()
    def _validation(self, validation: Features) -> Validation:
        """The predictions of the finished network for the validation images, and the temperature for them."""
        outputs = self.state.model.head(validation.values[:, 0].to(self.distributed.device))
        logits, readable = outputs.double().cpu().numpy(), validation.readable.numpy()
        temperature = fit_temperature(logits[readable], self.labels[readable], positions=np.flatnonzero(readable))
        return Validation(Predictions.of(logits, self.labels, readable), temperature)
