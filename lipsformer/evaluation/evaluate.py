"""Evaluation of any model on labeled images, by the same code path as prediction."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from lipsformer.bundle.acceptance import Refusal
from lipsformer.datasets import Split, UnlabeledImages
from lipsformer.inference.predictor import Predictor
from lipsformer.inference.runtimes import Outputs, Pixels
from lipsformer.system.console import printable, track
from lipsformer.system.errors import GateError, InputError
from lipsformer.system.hardware import cores
from lipsformer.system.strict_json import finite

from .predictions import ClassPredictions, Predictions

__all__ = ["BatchOutputs", "Evaluation", "evaluate", "format_evaluation", "run"]

FEW_CLASSES, FEW_FILES = 5, 3  # shown on a terminal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The result of `evaluate`. `unreadable` lists the images that were skipped, as (file, problem).

    `uncalibrated` are the predictions without the model's temperature, if it has one. `refusals` (N,) says why an
    answer is not accepted, if the model has a rule for that.
    """

    split: str
    predictions: Predictions
    uncalibrated: Predictions | None
    refusals: tuple[Refusal | None, ...] | None
    unreadable: tuple[tuple[str, str], ...]
    classes: tuple[str, ...]
    seconds: float
    provider: str

    @property
    def images_per_second(self) -> float:
        """Throughput, including reading and decoding."""
        return self.predictions.images / self.seconds

    def lost_classes(self) -> list[str]:
        """The classes of the split of which no image could be read."""
        found, classes = self.predictions, len(self.classes)
        left = np.bincount(found.labels[found.counted], minlength=classes)
        return [
            self.classes[index]
            for index in np.flatnonzero((np.bincount(found.labels, minlength=classes) > 0) & (left == 0))
        ]

    def check_classes(self) -> None:
        """Checks that an image of every class could be read: without that, the accuracy says nothing about the class.

        Raises:
            GateError: if a class lost all its images.
        """
        if lost := self.lost_classes():
            names = ", ".join(map(repr, lost[:3])) + (", ..." if len(lost) > 3 else "")
            raise GateError(
                f"{self.split}: no image can be read of {len(lost)} of its classes ({names}), so the accuracy leaves "
                "them out; repair or replace the files"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain data for strict JSON: numbers that are not finite become None."""
        found = self.predictions
        return finite(
            {
                "split": self.split,
                "images": found.images,
                "unreadable": len(self.unreadable),
                "unreadable_files": [file for file, _ in self.unreadable],
                "lost_classes": self.lost_classes(),
                "top1": found.top1,
                "top5": found.top5,
                "loss": found.mean_loss,
                "calibration_error": found.calibration_error(),
                "uncalibrated": None
                if self.uncalibrated is None
                else {"loss": self.uncalibrated.mean_loss, "calibration_error": self.uncalibrated.calibration_error()},
                "acceptance": self.acceptance_counts(),
                "images_per_second": self.images_per_second,
                "provider": self.provider,
                "classes": [self._class_to_dict(row) for row in found.per_class()],
            }
        )

    def acceptance_counts(self) -> dict[str, Any] | None:
        """How many answers were accepted, and how many of those are wrong."""
        if self.refusals is None:
            return None
        found, reasons = self.predictions, np.array([reason or "" for reason in self.refusals])
        accepted = found.counted & (reasons == "")
        return {
            "accepted": int(accepted.sum()),
            "wrong": int((accepted & ~found.correct).sum()),
            **{reason: int((found.counted & (reasons == reason)).sum()) for reason in get_args(Refusal)},
        }

    def _class_to_dict(self, row: ClassPredictions) -> dict[str, Any]:
        found = dict(vars(row))
        mistaken = found.pop("confused_with")
        names = {"class": self.classes[found.pop("index")]}
        return names | found | {"confused_with": None if mistaken is None else self.classes[mistaken]}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
    """Network input of a batch of images; `problems` says why some could not be read, by position."""

    positions: range
    pixels: list[Pixels]
    problems: dict[int, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchOutputs:
    """What a model gives for the images at `positions`; zeros for those that are not `readable` (n,)."""

    positions: range
    readable: NDArray[np.bool_]
    outputs: Outputs
    problems: dict[int, str]


def evaluate(predictor: Predictor, split: Split) -> Evaluation:
    """Run `predictor` on every image of `split`; those that cannot be read are skipped and listed.

    Raises:
        InputError: if no image can be read.
    """
    started = time.perf_counter()
    parts: list[Predictions] = []
    uncalibrated: list[Predictions] = []
    refusals: list[Refusal | None] = []
    problems: dict[int, str] = {}
    correct = counted = 0
    with track("eval", len(split)) as advance:
        for batch in run(predictor, split):
            labels, readable = split.labels[batch.positions.start : batch.positions.stop], batch.readable
            part = Predictions.of(batch.outputs.logits, labels, readable)
            parts.append(part)
            if predictor.temperature != 1.0:
                raw = batch.outputs.logits.astype(np.float64) * predictor.temperature
                uncalibrated.append(Predictions.of(raw, labels, readable))
            if batch.outputs.features is None:  # no image of the batch can be read, or the graph gives none
                refusals += [None] * len(part)
            elif predictor.acceptance is not None:
                distances = predictor.acceptance.space.distances(batch.outputs.features)
                refusals += map(predictor.acceptance.refusal, part.confidence, distances)
            problems |= batch.problems
            correct, counted = correct + int(part.correct.sum()), counted + part.images
            advance(len(part), f"top-1 {correct / max(counted, 1):.1%}")
    return Evaluation(
        split=split.name,
        predictions=Predictions.join(parts),
        uncalibrated=Predictions.join(uncalibrated) if uncalibrated else None,
        refusals=tuple(refusals) if predictor.acceptance is not None else None,
        unreadable=tuple((split.where(position), problem) for position, problem in problems.items()),
        classes=predictor.classes,
        seconds=time.perf_counter() - started,
        provider=predictor.runtime.provider,
    )


def format_evaluation(found: Evaluation) -> str:
    """Text for the terminal: overall metrics, the classes with the lowest accuracy, and the skipped files."""
    overall = found.predictions
    before = _before(found.uncalibrated)
    lines = [
        f"top-1 {overall.top1:.2%}, top-5 {overall.top5:.2%} on {overall.images:,} images ({found.split})",
        f"loss {overall.mean_loss:.3f}, calibration error {overall.calibration_error():.1%}{before}",
        *_accepted(found),
        f"{found.images_per_second:,.0f} images/s with decoding, on {found.provider}",
        *_worst_classes(found),
    ]
    if found.unreadable:
        count = len(found.unreadable)
        lines += ["", f"{count:,} more could not be read and {'was' if count == 1 else 'were'} skipped:"]
        lines += [f"  {printable(problem)}" for _, problem in found.unreadable[:FEW_FILES]]
        if count > FEW_FILES:
            lines.append(f"  and {count - FEW_FILES:,} others; --json lists all")
    return "\n".join(lines)


def _before(found: Predictions | None) -> str:
    if found is None:
        return ""
    return f" (without the temperature: {found.mean_loss:.3f}, {found.calibration_error():.1%})"


def _accepted(found: Evaluation) -> list[str]:
    counts = found.acceptance_counts()
    if counts is None:
        return []
    accepted, images = counts["accepted"], found.predictions.images
    wrong = f"{counts['wrong'] / accepted:.2%} of them wrong; " if accepted else ""
    return [
        f"accepted {accepted / max(images, 1):.1%}, {wrong}not accepted: {counts['unfamiliar']:,} unlike the training "
        f"photos, {counts['low_score']:,} with a low score"
    ]


def _worst_classes(found: Evaluation) -> list[str]:
    from lipsformer.evaluation.report.classes_table import worst_first

    rows = [row for row in worst_first(found.predictions) if row.accuracy is not None and row.accuracy < 1][
        :FEW_CLASSES
    ]
    if not rows:
        return []
    names = [printable(found.classes[row.index]) for row in rows]
    heading = "worst classes" if len(rows) < found.predictions.classes else "classes"
    width = max(map(len, (heading, *names)))
    lines = ["", f"{heading:{width}}  accuracy  images  most often taken for"]
    for name, row in zip(names, rows, strict=True):
        mistaken = (
            "" if row.confused_with is None else f"{printable(found.classes[row.confused_with])} ({row.confused:,})"
        )
        lines.append(f"{name:{width}}  {row.accuracy:>8.1%}  {row.images:>6,}  {mistaken}")
    return lines


def run(predictor: Predictor, images: Split | UnlabeledImages) -> Iterator[BatchOutputs]:
    """Runs `predictor` on all `images`, in batches.

    Raises:
        InputError: if no image can be read; after the last batch.
    """
    problems: dict[int, str] = {}
    for batch in _prepared(predictor, images):
        readable = np.array([position not in batch.problems for position in batch.positions])
        logits = np.zeros((len(readable), len(predictor.classes)), np.float32)
        features = None
        if batch.pixels:
            found = predictor.runtime.infer(np.stack(batch.pixels))
            logits[readable] = found.logits
            if found.features is not None:
                features = np.zeros((len(readable), found.features.shape[1]), np.float32)
                features[readable] = found.features
        problems |= batch.problems
        yield BatchOutputs(
            positions=batch.positions, readable=readable, outputs=Outputs(logits, features), problems=batch.problems
        )
    if len(problems) == len(images):
        first = next(iter(problems.values()))
        raise InputError(f"{images.name}: none of its {len(images)} images can be read; the first: {first}")


def _prepared(predictor: Predictor, images: Split | UnlabeledImages) -> Iterator[Prepared]:
    """Batches of network input, decoded in threads, one batch ahead."""

    def prepare(position: int) -> Pixels | str:
        try:
            return predictor.preprocessing.read(images.encoded(position), name=images.where(position))
        except InputError as error:
            return str(error)

    with ThreadPoolExecutor(cores()) as pool:
        ahead: list[tuple[range, list[Future[Pixels | str]]]] = []
        for start in range(0, len(images), predictor.max_batch):
            positions = range(start, min(start + predictor.max_batch, len(images)))
            ahead.append((positions, [pool.submit(prepare, position) for position in positions]))
            if len(ahead) == 2:
                yield _gather(*ahead.pop(0))
        for positions, futures in ahead:
            yield _gather(positions, futures)


def _gather(positions: range, futures: Sequence[Future[Pixels | str]]) -> Prepared:
    pixels: list[Pixels] = []
    problems: dict[int, str] = {}
    for position, future in zip(positions, futures, strict=True):
        result = future.result()
        if isinstance(result, str):
            problems[position] = result
        else:
            pixels.append(result)
    return Prepared(positions=positions, pixels=pixels, problems=problems)
