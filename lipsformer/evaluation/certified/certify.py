"""`lipsformer certify`: certified accuracy against radius, and what attacks make of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lipsformer.checkpoints.certificate import certificate_of, rounding
from lipsformer.checkpoints.checkpoint import Checkpoint, load_checkpoint
from lipsformer.datasets import Split
from lipsformer.datasets.spread import spread
from lipsformer.inference.runtimes import TorchRuntime
from lipsformer.model.pixel_norm import PixelNormalize
from lipsformer.system.console import track
from lipsformer.system.errors import GateError, InputError

from .attacks import Logits, lead, pgd, random_search

__all__ = ["AttackSettings", "Certification", "RadiusResult", "certify", "network_of", "parse_radii"]

BATCH = 100


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttackSettings:
    """How the attacks run: on `images` evenly spread images, with so many gradient steps, restarts and queries."""

    images: int = 100
    steps: int = 20
    restarts: int = 2
    queries: int = 100


@dataclasses.dataclass(frozen=True, kw_only=True)
class RadiusResult:
    """Accuracies at one radius: certified on all images, and all three on the attacked ones."""

    radius: float
    certified: float
    attacked_certified: float
    attacked_pgd: float
    attacked_random_search: float


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Certification:
    """The result for one checkpoint and split.

    `clean` is the accuracy on all `images`, `attacked_clean` that on the `attacked` ones. `radii` (N,) are the
    certified radii of the images that were read, 0 for a wrong answer. `lipschitz` is the bound from pixels in 0..1 to
    the features, `rounding` what is subtracted from every lead, `measured_rounding` what the attacked images need.
    """

    model: str
    split: str
    images: int
    unreadable: int
    attacked: int
    lipschitz: float
    rounding: float
    measured_rounding: float
    clean: float
    attacked_clean: float
    radii: NDArray[np.float64]
    rows: Mapping[str, RadiusResult]

    def failures(self) -> list[str]:
        """Where an attack got below a certificate or above the clean accuracy, or rounding above its margin."""
        found = []
        for name, row in self.rows.items():
            for attack, value in (("PGD", row.attacked_pgd), ("random search", row.attacked_random_search)):
                if not row.attacked_certified <= value <= self.attacked_clean:
                    found.append(
                        f"radius {name}: {value:.1%} under {attack} is not between the certified "
                        f"{row.attacked_certified:.1%} and the clean {self.attacked_clean:.1%}"
                    )
        if self.measured_rounding > self.rounding:
            found.append(f"float32 changes a lead by {self.measured_rounding:.1e}, more than {self.rounding:.1e}")
        return found

    def check(self) -> None:
        """Checks the certificates against the attacks.

        Raises:
            GateError: if an attack contradicts them.
        """
        if found := self.failures():
            raise GateError(f"{self.model}: certificates do not hold: {'; '.join(found)}; please report this")

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        data = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "radii"}
        return {
            **data,
            "norm": "L2 of pixels from 0 to 1",
            "certified": {name: row.certified for name, row in self.rows.items()},
            "rows": {name: dataclasses.asdict(row) for name, row in self.rows.items()},
            "median_radius": float(np.median(self.radii)),
        }


def certify(
    model: str | Path, split: Split, radii: Mapping[str, float], attacks: AttackSettings, images: int | None = None
) -> Certification:
    """Certify the answers of the checkpoint `model` to the images of `split`, or to `images` of them, evenly spread.

    Raises:
        InputError: if the checkpoint cannot be read or has no certificates, or no image can be read.
    """
    checkpoint = load_checkpoint(model)
    certificate = certificate_of(checkpoint)
    if certificate is None:
        raise InputError(f"{model}: has no certificates; train with --recipe cifar10_certified (docs/certified.md)")
    chosen = np.arange(len(split)) if images is None else spread(min(images, len(split)), len(split))
    pixels, labels = _read(checkpoint, split, chosen)
    logits = _answers(checkpoint, pixels)
    correct = logits.argmax(axis=1) == labels
    certified = np.where(correct, certificate.radii(logits), 0.0)
    at = spread(min(attacks.images, len(pixels)), len(pixels))
    rows = _rows(checkpoint, pixels[at], labels[at], certified, at, correct, radii, attacks)
    return Certification(
        model=str(model),
        split=split.name,
        images=len(pixels),
        unreadable=len(chosen) - len(pixels),
        attacked=len(at),
        lipschitz=certificate.lipschitz,
        rounding=certificate.error,
        measured_rounding=4 * rounding(checkpoint, pixels[at]),
        clean=float(correct.mean()),
        attacked_clean=float(correct[at].mean()),
        radii=certified,
        rows=rows,
    )


def parse_radii(text: str) -> dict[str, float]:
    """Radii such as "18/255,36/255" or "0.1" by their text.

    Raises:
        InputError: if one is not a positive number.
    """
    found = {}
    for part in text.split(","):
        try:
            found[part.strip()] = float(Fraction(part.strip()))
        except (ValueError, ZeroDivisionError):
            raise InputError(f"--radii {text}: write numbers such as 36/255 or 0.1, with commas between them") from None
        if not 0 < found[part.strip()] < 1e3:
            raise InputError(f"--radii {text}: {part.strip()} must be above 0 and below 1000")
    return found


def network_of(checkpoint: Checkpoint, dtype: torch.dtype) -> Logits:
    """The calibrated network from pixels (N, S, S, 3) in 0..1 to logits (N, K), in `dtype`."""
    import copy

    model = copy.deepcopy(checkpoint.calibrated()).to(dtype).eval().requires_grad_(False)
    normalize = PixelNormalize(checkpoint.preprocessing).to(dtype)
    mean, std = normalize.offset / 255, normalize.divisor / 255

    def logits(pixels: Tensor) -> Tensor:
        out: Tensor = model(((pixels.to(dtype) - mean) / std).permute(0, 3, 1, 2))
        return out

    return logits


def _rows(
    checkpoint: Checkpoint,
    pixels: NDArray[np.uint8],
    labels: NDArray[np.int64],
    certified: NDArray[np.float64],
    at: NDArray[np.int64],
    correct: NDArray[np.bool_],
    radii: Mapping[str, float],
    attacks: AttackSettings,
) -> dict[str, RadiusResult]:
    """The result of each radius; `pixels` and `labels` are those of the attacked images, at `at` of all."""
    network = network_of(checkpoint, torch.float32)
    images, truth = torch.from_numpy(pixels).float() / 255, torch.from_numpy(labels)
    rows = {}
    with track("attacks", 2 * len(radii)) as advance:
        for name, radius in radii.items():
            kept = []
            for attack in ("PGD", "random search"):
                if attack == "PGD":
                    change = pgd(network, images, truth, radius, steps=attacks.steps, restarts=attacks.restarts)
                else:
                    change = random_search(network, images, truth, radius, queries=attacks.queries)
                with torch.no_grad():
                    ahead = lead(network(images + change), truth).numpy() > 0
                kept.append(float((ahead & correct[at]).mean()))
                advance(1, f"{attack} at {name}")
            rows[name] = RadiusResult(
                radius=radius,
                certified=float((certified > radius).mean()),
                attacked_certified=float((certified[at] > radius).mean()),
                attacked_pgd=kept[0],
                attacked_random_search=kept[1],
            )
    return rows


def _read(
    checkpoint: Checkpoint, split: Split, chosen: Sequence[int] | NDArray[np.int64]
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    pixels, labels = [], []
    for index in map(int, chosen):
        try:
            pixels.append(checkpoint.preprocessing.read(split.encoded(index), name=split.where(index)))
        except InputError:
            continue
        labels.append(int(split.labels[index]))
    if not pixels:
        raise InputError(f"{split.name}: none of its images can be read")
    return np.stack(pixels), np.asarray(labels)


def _answers(checkpoint: Checkpoint, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    runtime = TorchRuntime(checkpoint)
    answers = []
    with track("certify", len(pixels)) as advance:
        for start in range(0, len(pixels), BATCH):
            answers.append(runtime.infer(pixels[start : start + BATCH]).logits)
            advance(len(answers[-1]), "certificates")
    return np.concatenate(answers)
