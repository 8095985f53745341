"""Two ONNX files of the same network in one process, in turn: the difference of two builds' graphs and nothing else.

    python benchmarks/builds/graphs.py old/ort-fp32.onnx new/ort-fp32.onnx

A ratio is the old time over the new one of the same round, so above 1 the new graph is faster. Medians over rounds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import onnx

from lipsformer.inference.runtimes import INPUT_NAME, open_session
from lipsformer.system.markdown import markdown_table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("graphs", type=Path, nargs=2, help="the old and the new .onnx file")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=50)
    arguments = parser.parse_args()
    sessions = [open_session(path, cuda=False) for path in arguments.graphs]
    size = sessions[0].get_inputs()[0].shape[1]
    rows = []
    for batch in arguments.batch:
        pixels = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), np.uint8)
        times: list[list[float]] = [[], []]
        for number in range(arguments.rounds):
            for index in (0, 1) if number % 2 else (1, 0):
                started = time.perf_counter()
                sessions[index].run(None, {INPUT_NAME: pixels})
                times[index].append(time.perf_counter() - started)
        ratio = statistics.median(old / new for old, new in zip(*times, strict=True))
        rows.append((str(batch), *(f"{statistics.median(found) * 1e3:.1f}" for found in times), f"{ratio:.3f}"))
    nodes = [len(onnx.load(path, load_external_data=False).graph.node) for path in arguments.graphs]
    print(f"{nodes[0]} and {nodes[1]} nodes, {arguments.rounds} rounds\n")
    print(markdown_table(("batch", "old, ms", "new, ms", "ratio"), rows, "rrrr"))


if __name__ == "__main__":
    main()
