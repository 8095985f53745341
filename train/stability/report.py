"""Report of a stability grid: outcomes, usable range of learning rates, and a table in Markdown."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

from lipsformer.system.markdown import markdown_table
from lipsformer.train.recipe import Recipe, flat

__all__ = ["Chance", "decades", "describe", "render_report", "summarize"]

Run = Mapping[str, Any]

TOLERANCE = 0.05  # top-1 below a model's best at which a learning rate still counts as usable
DEVIATIONS = 3  # of the binomial distribution, by which top-1 must exceed chance
DEFINITIONS = f"""\
- top-1: accuracy of the averaged weights, which `lipsformer train` saves, on all validation images after the last
  epoch. The average forgets the initial weights, but lags a little behind in a short training.
- diverged: the loss or its gradient was not finite for 20 steps in a row. That ends a training.
- did not learn: the training ended, but its top-1 is no more than {DEVIATIONS} standard deviations above that of always
  predicting the most frequent class, or its loss over the last twentieth of the last epoch is not below that of a
  uniform guess.
- skipped: steps whose loss or gradient was not finite. They leave the weights unchanged.
- usable range: the learning rates around the best one, without a gap, at which every seed learned and the mean top-1 is
  within {100 * TOLERANCE:.0f} points of the best. Its width is log10(highest / lowest). A range that ends at the edge
  of the grid may be wider."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chance:
    """Chance level: `top1` of the most frequent class, `noise` (3 standard deviations of it), `loss` of even odds."""

    top1: float
    noise: float
    loss: float

    @classmethod
    def of(cls, labels: Sequence[int], classes: int) -> Self:
        """Chance level on validation images with these labels."""
        top1 = max(collections.Counter(labels).values()) / len(labels)
        return cls(top1=top1, noise=DEVIATIONS * math.sqrt(top1 * (1 - top1) / len(labels)), loss=math.log(classes))


def describe(column: str, recipe: Recipe, result: Mapping[str, Any], chance: Chance) -> dict[str, Any]:
    """One training of `column` in the report, from the result that `run_trial` wrote.

    `outcome` is "learned", "did not learn" or "diverged". `curve` has pairs of a time in epochs and the mean training
    loss around it, null where all steps were skipped or none was taken. A diverged training has no final accuracy.
    """
    epochs = [*result["epochs"], *([result["unfinished"]] if result["unfinished"] else [])]
    curve = [
        (round(epoch + (index + 0.5) / len(record["train_loss_curve"]), 4), loss)
        for epoch, record in enumerate(epochs)
        for index, loss in enumerate(record["train_loss_curve"])
    ]
    diverged = result["diverged_at"] is not None
    last: Mapping[str, Any] = {"val_top1": None, "val_loss": None} if diverged else epochs[-1]
    final_loss = None if diverged else curve[-1][1]
    if diverged:
        outcome = "diverged"
    elif final_loss is not None and final_loss < chance.loss and last["val_top1"] > chance.top1 + chance.noise:
        outcome = "learned"
    else:
        outcome = "did not learn"
    return {
        "column": column,
        "learning_rate": recipe.learning_rate,
        "seed": recipe.seed,
        "outcome": outcome,
        "diverged_at": result["diverged_at"],
        "top1": last["val_top1"],
        "val_loss": last["val_loss"],
        "train_loss": final_loss,
        "skipped_steps": sum(record["skipped_steps"] for record in epochs),
        "seconds": round(sum(record["seconds"] for record in result["epochs"]), 1),
        "curve": curve,
    }


def summarize(runs: Sequence[Run]) -> dict[str, Any]:
    """Outcome counts of one column's `runs`, its best learning rate, and its usable range (`DEFINITIONS`).

    `highest_learned` is the highest rate at which every seed learned. If there is none, it, `best` and `usable` are
    null.
    """
    counts = collections.Counter(run["outcome"] for run in runs)
    rates = sorted({run["learning_rate"] for run in runs})
    means = [_mean([run for run in runs if run["learning_rate"] == rate]) for rate in rates]
    summary: dict[str, Any] = {
        "trainings": len(runs),
        **{name.replace(" ", "_"): counts[name] for name in ("learned", "did not learn", "diverged")},
        "best": None,
        "highest_learned": None,
        "usable": None,
    }
    best = max(range(len(rates)), key=lambda index: means[index])
    if means[best] < 0:
        return summary
    low = high = best
    while low > 0 and means[low - 1] >= means[best] - TOLERANCE:
        low -= 1
    while high < len(rates) - 1 and means[high + 1] >= means[best] - TOLERANCE:
        high += 1
    summary["best"] = {"learning_rate": rates[best], "top1": means[best]}
    summary["highest_learned"] = max(rate for rate, mean in zip(rates, means, strict=True) if mean >= 0)
    summary["usable"] = {
        "from": rates[low],
        "to": rates[high],
        "rates": high - low + 1,
        "decades": round(math.log10(rates[high] / rates[low]), 3),
        "open_below": low == 0,
        "open_above": high == len(rates) - 1,
    }
    return summary


def _mean(runs: Sequence[Run]) -> float:
    """Mean top-1 of the runs at one rate, or -1 if not all of them learned."""
    return float(np.mean([run["top1"] for run in runs])) if all(r["outcome"] == "learned" for r in runs) else -1.0


def render_report(report: Mapping[str, Any]) -> str:
    """The report as Markdown."""
    names = list(report["summary"])
    return "\n".join(
        (
            f"# Stability without warm-up: {_listed(names)} on {report['dataset']['name']}",
            "",
            *(_sentence(name, report["summary"][name]) for name in names),
            _comparison(report),
            "",
            "![Accuracy, loss curves and divergences](stability.png)",
            "",
            _table(report),
            "",
            DEFINITIONS,
            "",
            *_conditions(report),
            "",
        )
    )


def _conditions(report: Mapping[str, Any]) -> tuple[str, ...]:
    """Data, settings, machine and command."""
    grid, dataset, machine = report["grid"], report["dataset"], report["machine"]
    jobs, threads = machine["jobs"], machine["threads_per_job"]
    shared, own = _settings(grid)
    return (
        f"Trained on {dataset['training_images']:,} images of {dataset['classes']} classes, validated on "
        f"{dataset['validation_images']:,} ({dataset['validation_split']}). The learning rate starts at the value in "
        "the table and falls to 0 along half a cosine. All columns see the same images, crops and batches in the same "
        f"order. Seeds: {', '.join(map(str, grid['seeds']))}. Settings of all: {shared}.",
        "",
        *(f"- {label}: {settings}" for label, settings in own.items()),
        "",
        f"Measured on {machine['platform']}, {machine['device']}, with {jobs} job{'s' if jobs > 1 else ''} of "
        f"{threads} thread{'s' if threads > 1 else ''}, torch {machine['torch']}, "
        f"lipsformer {machine['lipsformer']}, by:",
        "",
        f"    {report['command']}",
    )


def _settings(grid: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
    """The settings that all columns share, and those of each column by label."""
    recipes = [flat(recipe) for recipe in grid["recipes"]]
    left_out = ("learning_rate", "seed", "workers")
    names = [name for name in dict.fromkeys(itertools.chain(*recipes)) if name not in left_out]
    shared = [name for name in names if all(name in one and one[name] == recipes[0][name] for one in recipes)]
    own = {
        label: ", ".join(f"{name} {one[name]}" for name in names if name in one and name not in shared)
        for label, one in zip(grid["columns"], recipes, strict=True)
    }
    return ", ".join(f"{name} {recipes[0][name]}" for name in shared), own


def _table(report: Mapping[str, Any]) -> str:
    """A row for each learning rate."""
    names, rates = list(report["summary"]), report["grid"]["learning_rates"]
    cells: dict[tuple[str, float], list[Run]] = {(name, rate): [] for name in names for rate in rates}
    for run in report["runs"]:
        cells[run["column"], run["learning_rate"]].append(run)
    rows = [[f"{rate:g}", *(_cell(cells[name, rate]) for name in names)] for rate in rates]
    return markdown_table(["learning rate", *names], rows, "r")


def _sentence(name: str, summary: Mapping[str, Any]) -> str:
    ends = (
        f"Of its {summary['trainings']} trainings, {summary['learned']} learned, {summary['did_not_learn']} did not "
        f"learn and {summary['diverged']} diverged."
    )
    if summary["usable"] is None:
        return f"{name} learned with every seed at no learning rate. {ends}"
    usable, best = summary["usable"], summary["best"]
    return (
        f"{name} reaches {best['top1']:.1%} at a learning rate of {best['learning_rate']:g}, and stays within "
        f"{100 * TOLERANCE:.0f} points of that from {usable['from']:g} to {usable['to']:g}: {decades(usable)}. The "
        f"highest rate at which it learned is {summary['highest_learned']:g}. {ends}"
    )


def _comparison(report: Mapping[str, Any]) -> str:
    """Compares the usable ranges, and says how many rates and seeds that rests on."""
    summaries, seeds = report["summary"], len(report["grid"]["seeds"])
    widths = [0 if summary["usable"] is None else summary["usable"]["rates"] for summary in summaries.values()]
    return (
        f"Usable rates of {len(report['grid']['learning_rates'])}, with {seeds} seed{'s' if seeds > 1 else ''}: "
        f"{_listed([f'{width} of {name}' for name, width in zip(summaries, widths, strict=True)])}. Parameters: "
        f"{_listed([f'{_millions(report, name)} of {name}' for name in summaries])}."
    )


def _listed(texts: Sequence[str]) -> str:
    return " and ".join([", ".join(texts[:-1]), texts[-1]] if len(texts) > 1 else texts)


def _millions(report: Mapping[str, Any], name: str) -> str:
    return f"{report['parameters'][name] / 1e6:.2f} M"


def decades(usable: Mapping[str, Any]) -> str:
    """The width of a usable range as text."""
    least = "at least " if usable["open_below"] or usable["open_above"] else ""
    return f"{least}{usable['decades']:.1f} decades"


def _cell(runs: Sequence[Run]) -> str:
    """The outcomes of one column at one rate, over the seeds."""
    ended = [run for run in runs if run["top1"] is not None]
    texts = []
    if ended:
        text = f"{np.mean([run['top1'] for run in ended]):.1%}"
        spread = [min(run["top1"] for run in ended), max(run["top1"] for run in ended)]
        texts.append(f"{text} ({spread[0]:.1%} to {spread[1]:.1%})" if len(ended) > 1 else text)
    idle = sum(run["outcome"] == "did not learn" for run in runs)
    if idle:
        texts.append("did not learn" + (f" ({idle} of {len(runs)})" if len(runs) > 1 else ""))
    if steps := [str(run["diverged_at"]) for run in runs if run["outcome"] == "diverged"]:
        texts.append(f"diverged at step {' and '.join(steps)}")
    skipped = sum(run["skipped_steps"] for run in runs)
    return ", ".join(texts + ([f"{skipped} steps skipped"] if skipped else []))
