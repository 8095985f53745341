"""The learning-rate range test (Smith 2017): a short training whose learning rate rises until the loss does.

LipsFormer should not need it. It shows where the limits are on your data.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from lipsformer.system import console
from lipsformer.system.atomic import atomic_write
from lipsformer.system.errors import InputError
from lipsformer.system.plotting import ACCENT, PRIMARY, SECONDARY, STYLE, save_figure
from lipsformer.train.loop import take_step
from lipsformer.train.run import open_run
from lipsformer.train.run_folder import RATE_PLOT, RATE_REPORT

__all__ = ["run_lr_range_test"]

STEPS = 100
LOWEST, HIGHEST = 1e-6, 1.0
MEMORY = 0.8  # of the smoothed loss
DIVERGED = 2.0  # times the loss at the lowest rates
FEWEST = 10  # steps needed for a result


def run_lr_range_test(data: Path, *, output: Path, device: str = "auto", **choices: Any) -> dict[str, Any]:
    """Raises the learning rate from 1e-6 to 1 over 100 steps and returns the report in learning_rate.json.

    `output` receives learning_rate.json and learning_rate.png and nothing else, so that a training may follow in it.
    `choices` are those of `run_training`: model, recipe, epochs, overrides.

    Raises:
        InputError: as `run_training`, or if the recipe has fewer than 10 steps.
    """
    with open_run(data, output=output, device=device, resume=True, **choices) as run:
        if run.recipe.method == "probe":
            raise InputError("--find-lr: a probe has no learning rate; omit it, or choose another --recipe")
        state, total = run.state, run.context.sampler.total
        steps = min(STEPS, total)
        if state.step:
            raise InputError(f"{output}: holds a training; run --find-lr in another --output")
        if steps < FEWEST:
            raise InputError(f"recipe: {total} steps are too few for --find-lr, which needs {FEWEST}; raise epochs")
        batches = run.training_batches()
        rates: list[float] = []
        losses: list[float] = []
        state.model.train()
        with console.track("learning-rate range test", steps) as advance:
            for rate in np.geomspace(LOWEST, HIGHEST, steps).tolist():
                step = take_step(state, next(batches), run.context, rate)
                state.step = step.step
                if step.loss is None:
                    break
                rates.append(rate)
                losses.append(step.loss)
                advance(1, f"rate {rate:.1e}, loss {losses[-1]:.3f}")
                if len(losses) > FEWEST and smoothed(losses)[-1] > DIVERGED * float(np.mean(losses[:FEWEST])):
                    break
        report = conclude(rates, losses, scale=run.recipe.peak_rate / run.recipe.learning_rate)
        if run.distributed.is_main:
            with atomic_write(output / RATE_REPORT) as draft:
                draft.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
            plot_loss(output / RATE_PLOT, report, run.title)
    return report


def smoothed(losses: Sequence[float]) -> list[float]:
    """Exponential means of the losses, with Adam's bias correction."""
    sums = itertools.accumulate(losses, lambda mean, loss: MEMORY * mean + (1 - MEMORY) * loss, initial=0.0)
    return [mean / (1 - MEMORY**count) for count, mean in enumerate(sums) if count]


def conclude(rates: Sequence[float], losses: Sequence[float], scale: float = 1.0) -> dict[str, Any]:
    """Finds the rates where the smoothed loss falls fastest and where it is lowest.

    Rates are reported as values for a recipe's `learning_rate`, which the recipe multiplies by `scale`.

    Raises:
        InputError: if the loss was not finite within the first 10 steps.
    """
    if len(rates) < FEWEST:
        raise InputError(f"the loss was not finite after {len(rates)} steps at rates below 1e-5; check the recipe")
    curve = np.array(smoothed(losses))
    slopes = np.gradient(curve, np.log(rates))
    lowest = int(curve.argmin())
    steepest = int(slopes[: lowest + 1].argmin())
    return {
        "suggested": _rounded(rates[steepest] / scale),
        "lowest_loss_at": _rounded(rates[lowest] / scale),
        "diverged_at": _rounded(rates[-1] / scale) if rates[-1] < HIGHEST else None,
        "learning_rates": [rate / scale for rate in rates],
        "losses": list(losses),
        "smoothed": curve.tolist(),
    }


def plot_loss(path: Path, report: dict[str, Any], title: str) -> None:
    """Draws loss against learning rate into the PNG file `path`."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8, 4.5), layout="constrained")
        axes = figure.add_subplot()
        axes.plot(report["learning_rates"], report["losses"], color=SECONDARY, linewidth=0.8, alpha=0.6, label="loss")
        axes.plot(report["learning_rates"], report["smoothed"], color=PRIMARY, linewidth=2, label="smoothed")
        axes.axvline(report["suggested"], color=ACCENT, linestyle="--", label=f"suggested: {report['suggested']:g}")
        axes.set(xscale="log", xlabel="learning rate", ylabel="cross entropy (nats)")
        low, high = min(report["smoothed"]), report["smoothed"][0]
        axes.set_ylim(low - 0.1 * (high - low + 0.1), high + 0.5 * (high - low + 0.1))
        axes.set_title(f"{title}: learning-rate range test")
        axes.legend(loc="lower left")
        save_figure(figure, path)


def _rounded(rate: float) -> float:
    return float(f"{rate:.2g}") if math.isfinite(rate) else rate
