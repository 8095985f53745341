"""The model card of a checkpoint, written from what the checkpoint knows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lipsformer.checkpoints.checkpoint import Checkpoint
from lipsformer.system.markdown import escape, markdown_table

__all__ = ["card_metadata", "write_model_card"]

BRIEF = 20  # class names to show at once
FRACTIONS = ("top1", "top5")
FORCED = "The model knows these classes and no others: it gives every image one of them."
REFUSING = "The model knows these classes and no others, and says so where it does not accept its own answer."
TEMPLATE = """# {title}

An image classifier of the family LipsFormer ([paper](https://arxiv.org/abs/2304.09856)): `{architecture}` with
{parameters:,} parameters, for {classes} classes and images of {image_size} px.

{usage}

`model.safetensors` has everything: the weights, and as metadata what `config.json` repeats for other readers.

## Metrics

{metrics}

## Preprocessing

{preprocessing}

`mean` and `std` are of RGB values from 0 to 1.

## Classes

{names}

## Scores

{scores}

## Limits

{limits}

The checkpoint does not record its training data and its intended use: please add them here, and a license.
"""


def write_model_card(checkpoint: Checkpoint, title: str, usage: str) -> str:
    """The text of the card: `usage`, metrics, preprocessing and class names."""
    metrics = [(name, _value(name, value)) for name, value in checkpoint.metrics.items() if _plain(value)]
    names = [escape(name) for name in checkpoint.classes]
    more = f"\n\n<details><summary>All {len(names)}</summary>\n\n{', '.join(names)}\n\n</details>"
    return TEMPLATE.format(
        title=title,
        usage=usage,
        architecture=checkpoint.config.to_dict()["architecture"],
        parameters=sum(parameter.numel() for parameter in checkpoint.model.parameters()),
        classes=len(names),
        image_size=checkpoint.config.image_size,
        metrics=markdown_table(("metric", "value"), metrics) if metrics else "The checkpoint has none.",
        preprocessing=markdown_table(
            ("setting", "value"),
            [(name, _value(name, value)) for name, value in checkpoint.preprocessing.to_dict().items()],
        ),
        names=", ".join(names[:BRIEF]) + (more if len(names) > BRIEF else ""),
        scores=_scores(checkpoint),
        limits=FORCED if checkpoint.thresholds is None else REFUSING,
    )


def _scores(checkpoint: Checkpoint) -> str:
    """How the scores were calibrated, and which answers are accepted."""
    if checkpoint.temperature == 1.0:
        calibrated = "Not calibrated: a score says little about the chance of being right."
    else:
        calibrated = f"Calibrated: the logits are divided by the temperature {checkpoint.temperature:.4g}."
    rule = checkpoint.thresholds
    if rule is None:
        return calibrated
    return (
        f"{calibrated} An answer is accepted if its score is at least {rule.min_score:.3f} and the distance from the "
        f"training images at most {rule.max_distance:.3f}. At most {rule.max_error:.1%} of the accepted are wrong, "
        f"with a confidence of {rule.confidence:.0%}; of {rule.photos:,} labeled photos, {rule.coverage:.1%} were "
        "accepted."
    )


def card_metadata(metrics: Mapping[str, Any], title: str, license_id: str | None) -> str:
    """The YAML block with its fences, with which a card on the Hub begins. Without `license_id` it names no license.

    It has the accuracy if its dataset has a name.
    """
    from huggingface_hub import EvalResult, ModelCardData

    results, top1, dataset = None, metrics.get("top1"), metrics.get("dataset")
    if isinstance(top1, float) and isinstance(dataset, str):
        results = [
            EvalResult(
                task_type="image-classification",
                dataset_type=dataset,
                dataset_name=dataset,
                dataset_split=metrics.get("split"),
                metric_type="accuracy",
                metric_value=top1,
            )
        ]
    data = ModelCardData(
        library_name="lipsformer",
        pipeline_tag="image-classification",
        tags=["lipsformer", "image-classification", "vision"],
        license=license_id,
        model_name=title,
        eval_results=results,
    )
    return f"---\n{data.to_yaml()}\n---"


def _plain(value: object) -> bool:
    return isinstance(value, str | int | float)


def _value(name: str, value: object) -> str:
    if name in FRACTIONS and isinstance(value, float):
        return f"{value:.2%}"
    return escape(f"{value:.4g}" if isinstance(value, float) else str(value))
