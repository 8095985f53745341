"""Seconds of one Muon step on a CPU, PyTorch's and ours, in turn.

python benchmarks/training/muon.py
"""

from __future__ import annotations

import statistics
import time

import torch

from lipsformer import create_model
from lipsformer.system.markdown import markdown_table
from lipsformer.train import load_recipe
from lipsformer.train.optim.optimizers import build_optimizers

ROUNDS = 5
MODELS = {"lipsformer_nano": 32, "lipsformer_swin_nano": 64}


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    for name, size in MODELS.items():
        model = create_model(name, num_classes=10, image_size=size)
        _, ours = build_optimizers(model, load_recipe("default", {"optimizer": "muon"})).members
        weights = [weight for group in ours.param_groups for weight in group["params"]]
        for weight in weights:
            weight.grad = torch.randn_like(weight)
        theirs = torch.optim.Muon(weights, adjust_lr_fn="match_rms_adamw")
        seconds: list[list[float]] = [[], []]
        for _ in range(ROUNDS):
            for optimizer, times in zip((theirs, ours), seconds, strict=True):
                started = time.perf_counter()
                optimizer.step()
                times.append(time.perf_counter() - started)
        before, after = map(statistics.median, seconds)
        count = f"{len(weights)}, {sum(weight.numel() for weight in weights) / 1e6:.1f} M numbers"
        rows.append((name, count, f"{before:.2f}", f"{after:.2f}", f"{before / after:.1f}x"))
    columns = ("model", "matrices", "torch.optim.Muon, s", "ours, s", "ratio")
    print(
        f"torch {torch.__version__}, 1 thread, medians of {ROUNDS} rounds; {torch.backends.cpu.get_cpu_capability()}\n"
    )
    print(markdown_table(columns, rows, "lrrrr"))


if __name__ == "__main__":
    main()
