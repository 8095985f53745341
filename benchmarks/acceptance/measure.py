"""Which number tells photos of other things best: the score, or a distance of the pooled features.

lipsformer train fruit --recipe fruit --output runs/fruit
python benchmarks/acceptance/measure.py runs/fruit/last.safetensors fruit > benchmarks/acceptance/table.md

AUROC of the dataset's test photos against CIFAR-10, Fashion-MNIST and noise, of which the model saw nothing but the
first (it starts from `lipsformer_cifar10`); and of photos classified correctly against wrongly.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from lipsformer import load_predictor
from lipsformer.datasets import Split, open_dataset, resolve_dataset
from lipsformer.evaluation.calibration import feature_space
from lipsformer.evaluation.calibration.feature_space import fit_feature_space
from lipsformer.evaluation.calibration.risk_coverage import auroc
from lipsformer.evaluation.evaluate import run
from lipsformer.inference.predictor import Predictor, softmax
from lipsformer.inference.runtimes import Outputs
from lipsformer.system.markdown import markdown_table

OUTSIDE = 600  # photos of each other dataset
SHRINKAGES = (0.001, 0.01, 0.1, 1.0)
Number = Callable[[Outputs], NDArray[np.float64]]  # low for photos of the classes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a checkpoint that was trained on the data")
    parser.add_argument("data", help="class folders with train and test, or a built-in name")
    arguments = parser.parse_args()
    predictor = load_predictor(arguments.model, "cpu")
    data = open_dataset(resolve_dataset(arguments.data))
    train, test = outputs(predictor, data.train), outputs(predictor, data.validation)
    others = {"CIFAR-10": other(predictor, "cifar10"), "Fashion-MNIST": other(predictor, "fashion-mnist")}
    size = predictor.preprocessing.image_size
    noise = np.random.default_rng(0).integers(0, 256, (OUTSIDE, size, size, 3)).astype(np.uint8)
    parts = [predictor.runtime.infer(noise[start : start + 16]) for start in range(0, OUTSIDE, 16)]
    others["noise"] = Outputs.joined(parts)
    correct = test.logits.argmax(axis=1) == data.validation.labels
    rows = []
    for way, number in numbers(train, data.train.labels, len(data.classes)).items():
        own = number(test)
        cells = [auroc(own, number(found)) for found in others.values()]
        rows.append((way, *(f"{cell:.3f}" for cell in (*cells, auroc(own[correct], own[~correct])))))
    print(f"{arguments.data}: {len(test.logits)} test photos, top-1 {correct.mean():.1%}\n")
    print(markdown_table(("by", *others, "wrong answers"), rows, "lrrrr"))


def numbers(train: Outputs, labels: NDArray[np.int64], classes: int) -> dict[str, Number]:
    """The candidates, by name."""
    if train.features is None:
        raise SystemExit("the model gives no features; export it again")

    def mahalanobis(shrinkage: float) -> Number:
        feature_space.SHRINKAGE = shrinkage
        space = fit_feature_space(train.features, labels, classes)
        return lambda found: space.distances(found.features)

    def neighbors(count: int) -> Number:
        def unit(features: NDArray[np.float32]) -> torch.Tensor:
            return torch.nn.functional.normalize(torch.from_numpy(features).double())

        return lambda found: (
            torch.cdist(unit(found.features), unit(train.features)).topk(count, largest=False).values[:, -1].numpy()
        )

    return {
        "score": lambda found: -softmax(found.logits).max(axis=1),
        **{f"Mahalanobis distance, shrinkage {value:g}": mahalanobis(value) for value in SHRINKAGES},
        **{f"cosine distance of neighbor {count}": neighbors(count) for count in (1, 5)},
    }


def outputs(predictor: Predictor, split: Split) -> Outputs:
    return Outputs.joined([batch.outputs for batch in run(predictor, split)])


def other(predictor: Predictor, name: str) -> Outputs:
    split = open_dataset(resolve_dataset(name)).validation
    return outputs(predictor, split.select(np.random.default_rng(0).permutation(len(split))[:OUTSIDE]))


if __name__ == "__main__":
    main()
