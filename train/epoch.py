"""What an epoch's training steps have come to so far; saved with the state, so that no figure is lost on the way."""

from __future__ import annotations

from typing import Any, Self

__all__ = ["CURVE_POINTS", "EpochSums"]

CURVE_POINTS = 20  # of the loss curve within an epoch


class EpochSums:
    """Sums over an epoch of `steps` steps: of the training loss, of right answers, of images, and of skipped steps.

    The loss curve is the mean loss of each of `CURVE_POINTS` even slices of the epoch, or of each step where these are
    fewer.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.correct = 0.0
        self.skipped = 0
        self.slices = [(0.0, 0)] * min(CURVE_POINTS, steps)  # of the losses of each slice's images, and their number
        self.shown = 0  # images, since this process began with the epoch; and seconds, waiting and in all
        self.waited = self.seconds = 0.0

    def add(self, index: int, loss: float, correct: float, images: int) -> None:
        """Takes in step `index` of the epoch, from 0: the sums over its images."""
        point = index * len(self.slices) // self.steps
        total, count = self.slices[point]
        self.slices[point] = (total + loss, count + images)
        self.correct += correct

    def skip(self) -> None:
        """Takes in a step that was skipped."""
        self.skipped += 1

    def time(self, images: int, waited: float, seconds: float) -> None:
        """Takes in what a step cost: seconds that it waited for its images, and took in all."""
        self.shown += images
        self.waited += waited
        self.seconds += seconds

    def record(self) -> dict[str, Any]:
        """The figures of metrics.jsonl; nothing where no step counted."""
        loss, images = (sum(column) for column in zip(*self.slices, strict=True))
        return {
            "train_loss": loss / images if images else None,
            "train_top1": self.correct / images if images else None,
            "train_loss_curve": [round(total / count, 4) if count else None for total, count in self.slices],
            "skipped_steps": self.skipped,
            "images_per_second": round(self.shown / self.seconds, 1) if self.seconds else None,
            "data_wait": round(self.waited / self.seconds, 4) if self.seconds else None,
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; `from_dict` reads it back, to the bit. Times are left out: they are of this process."""
        return {"steps": self.steps, "correct": self.correct, "skipped": self.skipped, "slices": self.slices}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """What `to_dict` wrote.

        Raises:
            KeyError, TypeError, ValueError: if it is not that.
        """
        sums = cls(data["steps"])
        sums.correct, sums.skipped = data["correct"], data["skipped"]
        sums.slices = [(total, count) for total, count in data["slices"]]
        return sums
