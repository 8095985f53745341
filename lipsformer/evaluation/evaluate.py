"""How well any model does on labeled images, through the same path that predictions take."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from lipsformer.datasets import Split
from lipsformer.inference.predictor import Predictor
from lipsformer.inference.runtimes import Pixels
from lipsformer.system.console import printable, track
from lipsformer.system.errors import InputError
from lipsformer.system.hardware import cores

from .predictions import ClassPredictions, Predictions

__all__ = ["Evaluation", "evaluate", "render"]

FEW_CLASSES = 5  # that are shown on a terminal
FEW_FILES = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What `evaluate` found. `unreadable` are the images that were skipped, as (file, what is wrong with it)."""

    split: str
    outcomes: Predictions
    unreadable: tuple[tuple[str, str], ...]
    classes: tuple[str, ...]
    seconds: float
    provider: str

    @property
    def images(self) -> int:
        """Number of images that could be read."""
        return self.outcomes.images

    @property
    def top1(self) -> float:
        """Share of images whose class was the first guess."""
        return self.outcomes.top1

    @property
    def top5(self) -> float:
        """Share of images whose class was among the first five guesses."""
        return self.outcomes.top5

    @property
    def images_per_second(self) -> float:
        """With reading and decoding."""
        return self.images / self.seconds

    def to_dict(self) -> dict[str, Any]:
        """Plain data for strict JSON: what is not a finite number is None."""
        return {
            "split": self.split,
            "images": self.images,
            "unreadable": len(self.unreadable),
            "unreadable_files": [file for file, _ in self.unreadable],
            "top1": self.top1,
            "top5": self.top5,
            "loss": _finite(self.outcomes.mean_loss),
            "calibration_error": _finite(self.outcomes.calibration_error()),
            "images_per_second": self.images_per_second,
            "provider": self.provider,
            "classes": [self._class_to_dict(row) for row in self.outcomes.per_class()],
        }

    def _class_to_dict(self, row: ClassPredictions) -> dict[str, Any]:
        found = dataclasses.asdict(row)
        mistaken = found.pop("confused_with")
        names = {"class": self.classes[found.pop("index")]}
        return names | found | {"confused_with": None if mistaken is None else self.classes[mistaken]}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
    """Network input of some images of a split, and those among them that could not be read, with the reason."""

    positions: range
    pixels: list[Pixels]
    problems: dict[int, str]


def evaluate(predictor: Predictor, split: Split) -> Evaluation:
    """Runs `predictor` on every image of `split`; those that cannot be read are skipped, and told of.

    Raises:
        InputError: if no image can be read.
    """
    started = time.perf_counter()
    parts: list[Predictions] = []
    problems: dict[int, str] = {}
    right = counted = 0
    with track("eval", len(split)) as advance:
        for batch in _prepared(predictor, split):
            part = _answer(predictor, split, batch)
            parts.append(part)
            problems |= batch.problems
            right, counted = right + int(part.correct.sum()), counted + part.images
            advance(len(part), f"top-1 {right / max(counted, 1):.1%}")
    if len(problems) == len(split):
        raise InputError(f"{split.name}: none of its {len(split)} images can be read; the first: {problems[0]}")
    return Evaluation(
        split=split.name,
        outcomes=Predictions.join(parts),
        unreadable=tuple((split.where(position), problem) for position, problem in problems.items()),
        classes=predictor.classes,
        seconds=time.perf_counter() - started,
        provider=predictor.runtime.provider,
    )


def render(found: Evaluation) -> str:
    """What the command line says: the figures, the classes that did worst, and the files that were skipped."""
    lines = [
        f"top-1 {found.top1:.2%}, top-5 {found.top5:.2%} on {found.images:,} images ({found.split})",
        f"loss {found.outcomes.mean_loss:.3f}, calibration error {found.outcomes.calibration_error():.1%}",
        f"{found.images_per_second:,.0f} images/s with decoding, on {found.provider}",
        *_worst_classes(found),
    ]
    if found.unreadable:
        count = len(found.unreadable)
        lines += ["", f"{count:,} more could not be read and {'was' if count == 1 else 'were'} skipped:"]
        lines += [f"  {printable(problem)}" for _, problem in found.unreadable[:FEW_FILES]]
        if count > FEW_FILES:
            lines.append(f"  and {count - FEW_FILES:,} others; --json names all")
    return "\n".join(lines)


def _worst_classes(found: Evaluation) -> list[str]:
    from lipsformer.evaluation.report.classes_table import worst_first

    rows = [row for row in worst_first(found.outcomes) if row.accuracy is not None and row.accuracy < 1][:FEW_CLASSES]
    if not rows:
        return []
    names = [printable(found.classes[row.index]) for row in rows]
    heading = "worst classes" if len(rows) < found.outcomes.classes else "classes"
    width = max(map(len, (heading, *names)))
    lines = ["", f"{heading:{width}}  accuracy  images  most often taken for"]
    for name, row in zip(names, rows, strict=True):
        mistaken = (
            "" if row.confused_with is None else f"{printable(found.classes[row.confused_with])} ({row.confused:,})"
        )
        lines.append(f"{name:{width}}  {row.accuracy:>8.1%}  {row.images:>6,}  {mistaken}")
    return lines


def _answer(predictor: Predictor, split: Split, batch: Prepared) -> Predictions:
    readable = np.array([position not in batch.problems for position in batch.positions])
    logits = np.zeros((len(readable), len(predictor.classes)), np.float32)
    if batch.pixels:
        logits[readable] = predictor.runtime.infer(np.stack(batch.pixels))
    return Predictions.of(logits, split.labels[batch.positions.start : batch.positions.stop], readable)


def _prepared(predictor: Predictor, split: Split) -> Iterator[Prepared]:
    """Batches of network input, decoded in threads one batch ahead of the one in use."""

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


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
