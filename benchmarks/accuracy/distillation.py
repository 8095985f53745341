"""Distillation on against off at equal wall time, over several seeds.

    python benchmarks/accuracy/distillation.py --teacher TEACHER.safetensors --epochs 30 > benchmarks/accuracy/distillation.md

A step with a teacher takes longer. So that both kinds get the same time, short trainings first measure a step of each,
in turn, and the training without a teacher gets as many more epochs. Its learning rate falls over all of them. Both
kinds then train in turn, so that other load on the machine affects both.

--holdout trains on three quarters of the training split and validates on the rest: use it to choose settings, so that
the test photos are seen once, at the end.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from lipsformer.checkpoints.checkpoint import load_checkpoint
from lipsformer.datasets import DatasetOptions, resolve_dataset
from lipsformer.system.hardware import cpu_name
from lipsformer.system.markdown import table
from lipsformer.train import load_recipe, run_training

ON, OFF = "with the teacher", "without"

HEADING = """# Distillation

Top-1 of `{recipe}` on {data}, with and without a teacher, at equal wall time, over {seeds} seeds. The recipe changes:
{changes}. Teacher: `{teacher}`. {split}

    {command}
"""


def main() -> None:
    arguments = parse()
    data = resolve_dataset(arguments.data)
    options = None
    if arguments.holdout:
        data, options = data / "train", DatasetOptions(fold="1/4")
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(arguments.output or scratch)
        epochs = {ON: arguments.epochs, OFF: arguments.epochs}
        if not arguments.equal_epochs:
            seconds = {kind: [] for kind in (ON, OFF)}
            for number in range(arguments.trials):
                for kind in (ON, OFF):
                    run = train(arguments, data, options, root / f"time-{kind}-{number}", kind, 1, 0)
                    seconds[kind].append(last(run)["seconds"])
            ratio = statistics.median(seconds[ON]) / statistics.median(seconds[OFF])
            epochs[OFF] = max(1, round(arguments.epochs * ratio))
        rows = {ON: [], OFF: []}
        for seed in range(arguments.seeds):
            for kind in (ON, OFF):
                started = time.monotonic()
                run = train(arguments, data, options, root / f"{kind}-{seed}", kind, epochs[kind], seed)
                rows[kind].append((last(run)["val_top1"], time.monotonic() - started))
        print(HEADING.format(**describe(arguments)))
        print(summary(rows, epochs))
        print(f"\n{cpu_name()}, {torch.get_num_threads()} threads, PyTorch {torch.__version__}.")
