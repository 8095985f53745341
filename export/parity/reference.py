"""The checkpoint's outputs for the gate's images: computed once, compared with every file, kept in the bundle."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipsformer.inference.runtimes import Outputs, Runtime
from lipsformer.system.console import track
from lipsformer.system.errors import GateError, InputError

from .gate_images import GateImages

__all__ = ["REFERENCE_NAME", "Reference"]

REFERENCE_NAME = "parity.npz"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Reference:
    """The gate's images, and the checkpoint's outputs for its N photos and M hard inputs.

    The reference in a bundle of format 2 has no features.
    """

    images: GateImages
    photos: Outputs
    hard: Outputs

    @classmethod
    def of(cls, runtime: Runtime, images: GateImages) -> Reference:
        """Compute the outputs by `runtime`, each image alone.

        Raises:
            GateError: if they are not finite, and so cannot be compared with.
        """
        pixels = np.concatenate([images.photos, images.hard])
        answers = []
        with track("checkpoint", len(pixels)) as advance:
            for i in range(len(pixels)):
                answers.append(runtime.infer(pixels[i : i + 1]))
                advance(1, "")
        outputs = Outputs.joined(answers)
        broken = np.flatnonzero(~np.isfinite(outputs.logits).all(axis=1))
        count = len(images.photos)
        if len(broken):
            what = "a photo" if broken[0] < count else f"the input '{images.hard_names[broken[0] - count]}'"
            raise GateError(f"the checkpoint's logits of {what} are not finite: it cannot be exported; retrain it")
        return cls(images=images, photos=outputs.at(slice(count)), hard=outputs.at(slice(count, None)))

    def select(self, positions: NDArray[np.int64]) -> Reference:
        """A reference with only the photos at `positions`."""
        labels = self.images.labels
        images = dataclasses.replace(
            self.images,
            photos=self.images.photos[positions],
            labels=None if labels is None else labels[positions],
        )
        return dataclasses.replace(self, images=images, photos=self.photos.at(positions))

    def save(self, path: Path) -> None:
        """Write pixels and outputs as compressed arrays, without pickle."""
        features: dict[str, Any] = {"photo_features": self.photos.features, "hard_features": self.hard.features}
        np.savez_compressed(
            path,
            **{name: array for name, array in features.items() if array is not None},
            photos=self.images.photos,
            hard=self.images.hard,
            hard_names=np.array(self.images.hard_names),
            photo_logits=self.photos.logits,
            hard_logits=self.hard.logits,
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
                photos, hard = (
                    Outputs(file[f"{kind}_logits"], file.get(f"{kind}_features")) for kind in ("photo", "hard")
                )
                return cls(images=images, photos=photos, hard=hard)
        except (OSError, KeyError, ValueError) as error:
            raise InputError(f"{path}: reference logits cannot be read ({error}); export the bundle again") from None
