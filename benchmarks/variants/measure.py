"""Every variant at its own depth, width and image size: one training step, a checkpoint, an export through the gate.

    python benchmarks/variants/measure.py > benchmarks/variants/README.md

The tests do the same with fewer blocks and smaller images. This takes an hour on one core and a few GB.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from lipsformer import Preprocessing, create_model, load_checkpoint, save_checkpoint
from lipsformer.export import export_bundle
from lipsformer.model.variants import VARIANTS

CLASSES = tuple(str(number) for number in range(10))


def measure(name: str) -> tuple[float, float]:
    """The worst relative L2 error of the batches of `name`'s parity gate, and the CPU seconds of it all."""
    started = time.process_time()
    torch.manual_seed(0)
    model = create_model(name, len(CLASSES))
    size = model.config.image_size
    F.cross_entropy(model.train()(torch.randn(2, 3, size, size)), torch.tensor([1, 2])).backward()
    torch.optim.AdamW(model.parameters(), lr=1e-3).step()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_checkpoint(
            path,
            config=model.config,
            weights=model.state_dict(),
            classes=CLASSES,
            preprocessing=Preprocessing(image_size=size),
            metrics={},
        )
        read = load_checkpoint(path).model.state_dict()
        if not all(torch.equal(tensor, read[key]) for key, tensor in model.state_dict().items()):
            raise SystemExit(f"{name}: its checkpoint differs")
        parity = export_bundle(path, Path(folder) / "bundle").graph().parity or {}
    return max(batch["relative_l2"] for batch in parity["batches"]), time.process_time() - started


def main() -> None:
    print("# All variants at full size\n")
    print("One training step, a checkpoint that is restored bit for bit, and an export that passed the parity gate at")
    print("batch sizes 1, 3 and 16, at the variant's own depth, width and image size.\n")
    print("    python benchmarks/variants/measure.py > benchmarks/variants/README.md\n")
    print("| variant | worst relative L2 error of the logits | CPU seconds |")
    print("|---|---:|---:|")
    for name in VARIANTS:
        error, seconds = measure(name)
        print(f"| {name} | {error:.1e} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
