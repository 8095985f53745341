"""The tracing of a network to ONNX, by us and by `torch.onnx.export`: seconds, and whether the graphs agree.

    pip install onnxscript onnx-ir
    python benchmarks/export/measure.py > benchmarks/export/README.md

Both get the same folded float32 network with random weights. "Difference" is the largest one between the logits of
the two graphs in ONNX Runtime on one thread, for 14 photos, relative to the largest logit. In Swin, ours has 24 nodes
more: they add the official epsilon of 1e-24, which PyTorch's optimizer drops.
"""

from __future__ import annotations

import os
import time
import warnings

import numpy as np
import onnx
import onnxruntime
import torch

import lipsformer
from lipsformer import Preprocessing
from lipsformer.export.folding.network import FoldedLipsFormer, fold
from lipsformer.export.tracing.trace import trace
from lipsformer.images.samples import SAMPLES
from lipsformer.system.hardware import cpu_name
from lipsformer.system.markdown import markdown_table

MODELS = ("lipsformer_swin_nano", "lipsformer_cswin_nano", "lipsformer_swin_tiny")
OPSET = 20
OUTPUTS = ["logits", "features"]


def traced(network: FoldedLipsFormer, size: int) -> onnx.ModelProto:
    """Our graph."""
    example = torch.zeros(1, size, size, 3, dtype=torch.uint8)
    return trace(network, {"pixels": example}, output_names=OUTPUTS, opset=OPSET)


def exported(network: FoldedLipsFormer, size: int) -> onnx.ModelProto:
    """PyTorch's graph."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network,
            (torch.zeros(2, size, size, 3, dtype=torch.uint8),),
            dynamo=True,
            opset_version=OPSET,
            input_names=["pixels"],
            output_names=OUTPUTS,
            dynamic_shapes={"pixels": {0: torch.export.Dim("batch", min=1, max=4096)}},
            verbose=False,
        )
    return program.model_proto  # type: ignore[union-attr,no-any-return]


def logits(graph: onnx.ModelProto, pixels: np.ndarray) -> np.ndarray:
    """Logits of (N, S, S, 3) pixels."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, {"pixels": pixels})[0]
    return found


def row(name: str) -> list[str]:
    """A model's cells."""
    torch.manual_seed(0)
    model = lipsformer.create_model(name, init="xavier").eval()
    spec = Preprocessing(image_size=model.config.image_size)
    network = fold(model, spec).float()
    pixels = np.stack([spec.read(path) for path in sorted(SAMPLES.glob("*.jpg"))])
    seconds, graphs = [], []
    for export in (exported, traced):
        started = time.perf_counter()
        graphs.append(export(network, spec.image_size))
        seconds.append(time.perf_counter() - started)
    theirs, ours = (logits(graph, pixels) for graph in graphs)
    nodes = [str(len(graph.graph.node)) for graph in graphs]
    difference = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
    return [
        name,
        f"{seconds[0]:.1f}",
        f"{seconds[1]:.2f}",
        f"{seconds[0] / seconds[1]:.0f}",
        *nodes,
        f"{difference:.1e}",
    ]


def main() -> None:
    """Measures and prints the page."""
    print("# Tracing to ONNX\n\n" + (__doc__ or "").partition("\n\n")[2])
    print(f"{cpu_name()}, {os.cpu_count()} virtual cores; PyTorch {torch.__version__}.\n")
    columns = ["folded network", "torch.onnx, s", "ours, s", "ratio", "torch.onnx, nodes", "ours, nodes", "difference"]
    print(markdown_table(columns, [row(name) for name in MODELS], "lrrrrrr"))


if __name__ == "__main__":
    main()
