"""Evaluation of any model on labeled images, by the same code path as prediction."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from lipsformer.datasets import Split
from lipsformer.inference.predictor import Predictor
from lipsformer.inference.runtimes import Pixels
from lipsformer.system.console import printable, track
from lipsformer.system.errors import GateError, InputError
from lipsformer.system.hardware import cores
from lipsformer.system.strict_json import finite

from .predictions import ClassPredictions, Predictions

__all__ = ["Evaluation", "evaluate", "format_evaluation"]

FEW_CLASSES, FEW_FILES = 5, 3  # shown on a terminal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The result of `evaluate`. `unreadable` lists the images that were skipped, as (file, problem)."""

    split: str
    predictions: Predictions
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
                "images_per_second": self.images_per_second,
                "provider": self.provider,
                "classes": [self._class_to_dict(row) for row in found.per_class()],
            }
        )

    def _class_to_dict(self, row: ClassPredictions) -> dict[str, Any]:
        found = dict(vars(row))
        mistaken = found.pop("confused_with")
        names = {"class": self.classes[found.pop("index")]}
        return names | found | {"confused_with": None if mistaken is None else self.classes[mistaken]}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
    """Network input of a batch of a split's images; `problems` says why some could not be read, by position."""

    positions: range
    pixels: list[Pixels]
    problems: dict[int, str]


def evaluate(predictor: Predictor, split: Split) -> Evaluation:
    """Run `predictor` on every image of `split`; those that cannot be read are skipped and listed.

    Raises:
        InputError: if no image can be read.
    """
    started = time.perf_counter()
    parts: list[Predictions] = []
    problems: dict[int, str] = {}
    correct = counted = 0
    with track("eval", len(split)) as advance:
        for batch in _prepared(predictor, split):
            part = _predict(predictor, split, batch)
            parts.append(part)
            problems |= batch.problems
            correct, counted = correct + int(part.correct.sum()), counted + part.images
            advance(len(part), f"top-1 {correct / max(counted, 1):.1%}")
    if len(problems) == len(split):
        raise InputError(f"{split.name}: none of its {len(split)} images can be read; the first: {problems[0]}")
    return Evaluation(
        split=split.name,
        predictions=Predictions.join(parts),
        unreadable=tuple((split.where(position), problem) for position, problem in problems.items()),
        classes=predictor.classes,
        seconds=time.perf_counter() - started,
        provider=predictor.runtime.provider,
    )


def format_evaluation(found: Evaluation) -> str:
    """Text for the terminal: overall metrics, the classes with the lowest accuracy, and the skipped files."""
    overall = found.predictions
    lines = [
        f"top-1 {overall.top1:.2%}, top-5 {overall.top5:.2%} on {overall.images:,} images ({found.split})",
        f"loss {overall.mean_loss:.3f}, calibration error {overall.calibration_error():.1%}",
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


def _predict(predictor: Predictor, split: Split, batch: Prepared) -> Predictions:
    readable = np.array([position not in batch.problems for position in batch.positions])
    logits = np.zeros((len(readable), len(predictor.classes)), np.float32)
    if batch.pixels:
        logits[readable] = predictor.runtime.infer(np.stack(batch.pixels)).logits
    return Predictions.of(logits, split.labels[batch.positions.start : batch.positions.stop], readable)


def _prepared(predictor: Predictor, split: Split) -> Iterator[Prepared]:
    """Batches of network input, decoded in threads, one batch ahead."""

    def prepare(position: int) -> Pixels | str:
        try:
            return predictor.prepare(split.open(position))
        except InputError as error:
            where = split.where(position)
            return str(error) if where in str(error) else f"{where}: {error}"

    with ThreadPoolExecutor(cores()) as pool:
        ahead: list[tuple[range, list[Future[Pixels | str]]]] = []
        for start in range(0, len(split), predictor.max_batch):
            positions = range(start, min(start + predictor.max_batch, len(split)))
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
