"""The checkpoint's logits of the gate's images: computed once, compared with every file, kept in the bundle."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lipsformer.inference.runtimes import Logits, Runtime
from lipsformer.system.console import track
from lipsformer.system.errors import GateError, InputError

from .gate_images import GateImages

__all__ = ["REFERENCE_NAME", "Reference"]

REFERENCE_NAME = "parity.npz"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Reference:
    """The gate's images, and the checkpoint's logits of its photos (N, K) and hard inputs (M, K)."""

    images: GateImages
    photos: Logits
    hard: Logits

    @classmethod
    def of(cls, runtime: Runtime, images: GateImages) -> Reference:
        """Compute the logits by `runtime`, each image alone.

        Raises:
            GateError: if they are not finite, and so cannot be compared with.
        """
        pixels = np.concatenate([images.photos, images.hard])
        logits = []
        with track("checkpoint", len(pixels)) as advance:
            for i in range(len(pixels)):
                logits.append(runtime.infer(pixels[i : i + 1]))
                advance(1, "")
        answers = np.concatenate(logits)
        broken = np.flatnonzero(~np.isfinite(answers).all(axis=1))
        count = len(images.photos)
        if len(broken):
            what = "a photo" if broken[0] < count else f"the input '{images.hard_names[broken[0] - count]}'"
            raise GateError(f"the checkpoint's logits of {what} are not finite: it cannot be exported; retrain it")
        return cls(images=images, photos=answers[:count], hard=answers[count:])

    def select(self, positions: NDArray[np.int64]) -> Reference:
        """A reference with only the photos at `positions`."""
        labels = self.images.labels
        images = dataclasses.replace(
            self.images,
            photos=self.images.photos[positions],
            labels=None if labels is None else labels[positions],
        )
        return dataclasses.replace(self, images=images, photos=self.photos[positions])

    def save(self, path: Path) -> None:
        """Write pixels and logits as compressed arrays, without pickle."""
        np.savez_compressed(
            path,
            photos=self.images.photos,
            hard=self.images.hard,
            hard_names=np.array(self.images.hard_names),
            photo_logits=self.photos,
            hard_logits=self.hard,
        )

    @classmethod
    def load(cls, path: Path) -> Reference:
        """Read the file that `save` wrote.

        Raises:
            InputError: if it is missing, or does not hold these arrays.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                images = GateImages(
                    photos=file["photos"],
                    hard=file["hard"],
                    hard_names=tuple(file["hard_names"].tolist()),
                    labels=None,
                    source=path.name,
                )
                return cls(images=images, photos=file["photo_logits"], hard=file["hard_logits"])
        except (OSError, KeyError, ValueError) as error:
            raise InputError(f"{path}: reference logits cannot be read ({error}); export the bundle again") from None
