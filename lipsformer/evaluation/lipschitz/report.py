"""`lipsformer lipschitz`: bounds of a checkpoint's Lipschitz constant, as data and as a table."""

from __future__ import annotations

import dataclasses
import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lipsformer.checkpoints.checkpoint import load_checkpoint
from lipsformer.datasets import open_unlabeled
from lipsformer.images.samples import SAMPLES
from lipsformer.model.lipschitz.bounds import LEAST, Bound, bound_features, bound_network, flatten
from lipsformer.model.pixel_norm import PixelNormalize
from lipsformer.system.console import track
from lipsformer.system.errors import InputError
from lipsformer.system.markdown import escape, markdown_table

from .local import local_norm, local_profile

__all__ = ["LipschitzReport", "cumulative", "format_lipschitz", "measure_lipschitz"]

COLUMNS = ("convolution 1", "convolution 2", "attention", "mlp", "norm 1", "norm 2")  # parts of a block
PAPER = "by the paper"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LipschitzReport:
    """Bounds of the Lipschitz constant of a checkpoint, from normalized images to logits.

    All norms are Euclidean, and all numbers except `pixel_factor` are decimal logarithms. `upper` holds for all images.
    `lower` is the norm of the Jacobian at each image file. `profile` is that norm from the first image to the output of
    each step of `flatten(upper)`. For pixels in 0..1 the upper bound is `pixel_factor` times as large: 1 / the smallest
    standard deviation that the preprocessing divides by. `pixels_to_features` is the upper bound from pixels in 0..1 to
    the features, which certificates use; None if there is none.
    """

    model: str
    architecture: str
    image_size: int
    classes: int
    pixel_factor: float
    pixels_to_features: float | None
    upper: Bound
    lower: dict[str, float]
    profile: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, with what the numbers mean."""
        lower = list(self.lower.values())
        return {
            "norm": "Euclidean",
            "domain": "images after normalization",
            "range": "logits",
            "unit": "decimal logarithm",
            **dataclasses.asdict(self),
            "lower_largest": max(lower),
            "lower_median": statistics.median(lower),
        }


def measure_lipschitz(model: str | Path, data: Path, images: int) -> LipschitzReport:
    """Bound the checkpoint `model` for all images, and measure it at `images` of those in `data`, evenly spread.

    Raises:
        InputError: if the checkpoint or an image cannot be read, or `data` has no images.
    """
    if images < 1:
        raise InputError(f"--images {images}: it must be at least 1")
    checkpoint = load_checkpoint(model)
    for name, weights in checkpoint.model.named_parameters():
        if not bool(weights.isfinite().all()):
            raise InputError(
                f"{model}: {name} has values that are not finite; use a checkpoint from before it diverged"
            )
    found = open_unlabeled(data)
    if data != SAMPLES:
        found.left_out.report(data)
    total = len(found.names)
    chosen = [index * total // images for index in range(images)] if images < total else [*range(total)]
    pixels = [checkpoint.preprocessing.read(found.encoded(index), name=found.where(index)) for index in chosen]
    inputs = PixelNormalize(checkpoint.preprocessing)(torch.from_numpy(np.stack(pixels)))
    with track("lipschitz", len(chosen) + 2) as advance:
        upper = bound_network(checkpoint.model)
        advance(1, "upper bound")
        lower = {}
        for index, image in zip(chosen, inputs, strict=True):
            lower[found.names[index]] = _log10(local_norm(checkpoint.model, image))
            advance(1, found.names[index].rpartition("/")[2])
        profile = tuple(map(_log10, local_profile(checkpoint.model, inputs[0])))
    std = PixelNormalize(checkpoint.preprocessing).divisor.double() / 255
    return LipschitzReport(
        model=str(model),
        architecture=checkpoint.config.architecture,
        image_size=checkpoint.config.image_size,
        classes=len(checkpoint.classes),
        pixel_factor=1 / min(checkpoint.preprocessing.std),
        pixels_to_features=bound_features(checkpoint.model, std.tolist()).log10,
        upper=upper,
        lower=lower,
        profile=profile,
    )


def cumulative(report: LipschitzReport) -> list[float | None]:
    """The upper bound from the image to the output of each step; None from the first step that has none."""
    sums: list[float | None] = []
    for step in flatten(report.upper):
        before = sums[-1] if sums else 0.0
        sums.append(None if before is None or step.log10 is None else before + step.log10)
    return sums


def format_lipschitz(report: LipschitzReport) -> str:
    """The report in Markdown."""
    largest, median = max(report.lower.values()), statistics.median(report.lower.values())
    upper = report.upper
    total = f"not bounded ({upper.reason})" if upper.log10 is None else f"10^{upper.log10:.2f}"
    return "\n".join(
        [
            f"# Lipschitz constant of {escape(report.model)}",
            "",
            f"{report.architecture}, {report.image_size} pixels, {report.classes} classes. From normalized images to "
            "logits, Euclidean norms.",
            "",
            f"- upper bound: {total}",
            f"- lower bound: 10^{largest:.2f} = {10**largest:.3g}, the largest that was measured at "
            f"{len(report.lower)} image{'s' if len(report.lower) > 1 else ''}; median {10**median:.3g}",
            f"- from pixels in 0..1 the upper bound is {report.pixel_factor:.3g} times as large",
            "",
            "Decimal logarithms. Branches include their alpha; a block is the product of its 1 + branch and its norms.",
            f"'{PAPER}': attention by the paper's theorem 1, for comparison. 'up to here': the product so far. 'at the",
            "image': the norm of the Jacobian from the first image to there.",
            "",
            _table(report),
        ]
    )


def _table(report: LipschitzReport) -> str:
    """A row for each step, and one for each stage as a whole."""
    steps = flatten(report.upper)
    names = {part.name for step in steps for part in step.parts}
    columns = [name for name in COLUMNS if name in names]
    here = zip(cumulative(report), report.profile, strict=True)
    found = {step.name: list(map(_cell, values)) for step, values in zip(steps, here, strict=True)}
    if any("paper_log10" in part.details for step in steps for part in step.parts):
        columns.insert(columns.index("attention") + 1, PAPER)
    headings = ["step", *columns, "whole", "up to here", "at the image"]
    rows = []
    for part in report.upper.parts:
        stage = part.name not in found
        rows += [[*_cells(step, columns), *found[step.name]] for step in (part.parts if stage else (part,))]
        if stage:
            rows.append([*_cells(part, columns), "", ""])
    return markdown_table(headings, rows, "l" + "r" * (len(headings) - 1))


def _cells(step: Bound, columns: list[str]) -> list[str]:
    """The first cells of a row: the name of the step, the bounds of its parts, and its bound."""
    cells = {part.name: _cell(part.log10) for part in step.parts}
    papers = [part.details["paper_log10"] for part in step.parts if "paper_log10" in part.details]
    cells[PAPER] = "".join(map(_cell, papers))
    return [step.name, *(cells.get(name, "") for name in columns), _cell(step.log10)]


def _cell(value: float | None) -> str:
    return "not bounded" if value is None else f"{value:.2f}"


def _log10(value: float) -> float:
    return math.log10(max(value, LEAST))
