"""LipsFormer-Swin-Tiny at 224 pixels in ONNX Runtime: as it was trained, folded, in int8, and next to others' code.

    git clone https://github.com/IDEA-Research/LipsFormer official
    pip install --no-deps timm onnxscript onnx-ir
    python benchmarks/inference/measure.py --official official --timm > benchmarks/inference/README.md

Without --official and --timm ours is measured alone. All are exported by the same function, with the normalization in
front, and measured by `lipsformer benchmark`: a process for each, which take turns.
"""

from __future__ import annotations

import argparse
import runpy
import statistics
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
import torch
from torch import Tensor, nn

import lipsformer
from lipsformer import Checkpoint, Preprocessing
from lipsformer.checkpoints.convert import convert
from lipsformer.evaluation.speed.measure import measure_speed
from lipsformer.evaluation.speed.report import BenchmarkReport
from lipsformer.export.graph import build_graph
from lipsformer.export.int8.quantize import quantize
from lipsformer.images.samples import SAMPLES
from lipsformer.inference.runtimes import INPUT_NAME, LOGITS_NAME
from lipsformer.model.config import ModelConfig
from lipsformer.model.pixel_norm import PixelNormalize
from lipsformer.model.variants import make_config
from lipsformer.system.markdown import markdown_table

NAME, TIMM_NAME = "lipsformer_swin_tiny", "swin_tiny"
UNFOLDED, FOLDED, INT8 = "ours, as trained", "ours, folded", "ours, folded, int8"
OFFICIAL, TIMM, CLEANED = "official code", "timm swin_tiny", ", cleaned"
# How the official code and timm are imported, by the benchmark that measures their training.
PEERS = runpy.run_path(str(Path(__file__).parents[1] / "training" / "measure.py"), run_name="peers")

HEADING = f"""# Inference in ONNX Runtime

Milliseconds per call, from pixels to logits, of `{NAME}` at 224 pixels and batch size 1. The weights are random,
which does not affect the time. Times are medians over all calls of {{rounds}} rounds, ratios medians over the rounds.

    git clone https://github.com/IDEA-Research/LipsFormer official
    pip install --no-deps timm onnxscript onnx-ir
    python benchmarks/inference/measure.py --official official --timm > benchmarks/inference/README.md

`{UNFOLDED}` is the network as it is in the checkpoint (`export --no-fold`). The official code has the same weights;
its `window_reverse`, which fixes the batch size, is replaced. The official and timm graphs are as `torch.onnx.export`
writes them. "{CLEANED[2:]}" means without the intermediate shapes that it records in the graph, like ours: ONNX Runtime
infers its own and is faster. Swin-Tiny has no convolution branches and 10% fewer multiply-adds.
"""


def window_reverse(windows: Tensor, window: int, height: int, width: int) -> Tensor:
    """The official function, without the int() that makes the batch of the trace a constant of the graph."""
    rows, columns = height // window, width // window
    x = windows.reshape(-1, rows, columns, window, window, windows.shape[-1])
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, height, width, windows.shape[-1])


def peer_models(official: Path | None, timm: bool) -> dict[str, nn.Module]:
    """The official code's model, without the activation checkpoints that it makes in evaluation too, and timm's."""
    models: dict[str, nn.Module] = {}
    swin = PEERS["import_timm"]() if official or timm else None
    if official:
        module = PEERS["import_official"](official)
        module.window_reverse = window_reverse
        models[OFFICIAL] = PEERS["without_checkpoints"](module.LipsFormerSwin(num_classes=1000), module)
    if timm:
        models[TIMM] = swin.swin_tiny_patch4_window7_224(num_classes=1000)
    for name in PEERS["TORCHVISION"]:  # its stand-in would confuse the exporter
        if isinstance(sys.modules.get(name), mock.MagicMock):
            del sys.modules[name]
    return models


def our_checkpoint(official: nn.Module | None, folder: Path) -> Checkpoint:
    """Ours, with the official model's weights where there is one."""
    if official is None:
        model = lipsformer.create_model(NAME)
        return dressed(model, model.config, Preprocessing(image_size=model.config.image_size))
    torch.save({"model": official.state_dict()}, folder / "official.pth")
    convert(folder / "official.pth", folder / "ours.safetensors", image_size=224)
    return lipsformer.load_checkpoint(folder / "ours.safetensors")


def dressed(model: nn.Module, config: ModelConfig, preprocessing: Preprocessing) -> Checkpoint:
    """Any model as a checkpoint that can be exported; `config` is that of the network of ours that it is."""
    return Checkpoint(
        model=model,
        config=config,
        classes=tuple(f"class {index}" for index in range(config.num_classes)),
        preprocessing=preprocessing,
        metrics={},
    )


def photos(preprocessing: Preprocessing) -> np.ndarray:
    """The sample photos and their mirror images, to calibrate on (N, S, S, 3)."""
    plain = np.stack([preprocessing.read(path) for path in sorted(SAMPLES.glob("*.jpg"))])
    return np.concatenate([plain, plain[:, :, ::-1]])


def export(arguments: argparse.Namespace, folder: Path) -> list[Path]:
    """The .onnx files, their names what they are."""
    peers = peer_models(arguments.official, arguments.timm)
    ours = our_checkpoint(peers.get(OFFICIAL), folder)
    folded = build_graph(ours, max_batch=1)
    graphs = {
        UNFOLDED: build_graph(ours, max_batch=1, fold=False),
        FOLDED: folded,
        INT8: quantize(folded, photos(ours.preprocessing), target="ort"),
    }
    for name, model in peers.items():
        config = ours.config if name == OFFICIAL else make_config(TIMM_NAME)
        graphs[name] = as_pytorch_writes_it(dressed(model, config, ours.preprocessing))
        graphs[name].metadata_props.extend(folded.metadata_props)
        graphs[f"{name}{CLEANED}"] = onnx.ModelProto.FromString(graphs[name].SerializeToString())
        del graphs[f"{name}{CLEANED}"].graph.value_info[:]
    for name, graph in graphs.items():
        onnx.save(graph, folder / f"{name}.onnx")
    return [folder / f"{name}.onnx" for name in graphs]


def as_pytorch_writes_it(checkpoint: Checkpoint) -> onnx.ModelProto:
    """The graph that torch.onnx.export gives."""
    size = checkpoint.preprocessing.image_size
    program = torch.onnx.export(
        nn.Sequential(PixelNormalize(checkpoint.preprocessing), checkpoint.model).eval(),
        (torch.zeros(2, size, size, 3, dtype=torch.uint8),),
        dynamo=True,
        input_names=[INPUT_NAME],
        output_names=[LOGITS_NAME],
        dynamic_shapes={"pixels": {0: torch.export.Dim("batch", min=1, max=4096)}},
        verbose=False,
    )
    return program.model_proto  # type: ignore[union-attr,no-any-return]


def print_table(report: BenchmarkReport) -> None:
    rows: dict[str, Any] = {report.subjects[row.subject].label: row for row in report.measurements}
    versions = report.machine["versions"]
    print(f"{report.machine['cpu']}, {report.machine['threads']} threads; ONNX Runtime {versions['onnxruntime']}.\n")
    others = [name for name in (OFFICIAL, UNFOLDED, TIMM) if name in rows]
    headings = ["model", "ms", "p99", *(f"time / {name}" for name in others), "of sgemm", "memory, MB", "file, MB"]
    table = []
    for name, row in rows.items():
        share = "" if row.sgemm_share is None else f"{row.sgemm_share:.0%}"
        memory = "" if row.memory_bytes is None else f"{row.memory_bytes / 1e6:.0f}"
        size = report.subjects[row.subject].file_bytes / 1e6
        ratios = [f"{ratio(row, rows[other]):.2f}" for other in others]
        table.append([name, f"{row.p50_ms:.1f}", f"{row.p99_ms:.1f}", *ratios, share, memory, f"{size:.0f}"])
    print(markdown_table(headings, table, "l" + "r" * (len(headings) - 1)))
    print(f"\nsgemm: share of {report.sgemm_gflops:.0f} GFLOP/s, the best product of two 2048 x 2048 matrices in")
    print("the same run. memory: peak memory growth of a process after imports, from loading and running the model.")
    for subject in report.subjects:
        if subject.label in (FOLDED, INT8, OFFICIAL):
            print(f"\n{subject.label}: relative L2 {subject.relative_l2:.1e} from the first row; worst of 28 photos.")


def ratio(row: Any, other: Any) -> float:
    """The time of a call divided by the other's."""
    return statistics.median(a / b for a, b in zip(row.rounds_ms, other.rounds_ms, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--official", type=Path, help="a checkout of the official repository; needs timm")
    parser.add_argument("--timm", action="store_true", help="measure timm's Swin-Tiny too")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=0.6, help="of a model's turn in each round")
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # the official code's, about the versions that it was written for
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        models = export(arguments, Path(name))
        report = measure_speed(
            [(path.stem, path) for path in models],
            batches=[1],
            rounds=arguments.rounds,
            seconds=arguments.seconds,
            threads=arguments.threads,
        )
    print(HEADING.format(rounds=arguments.rounds))
    print_table(report)


if __name__ == "__main__":
    main()
