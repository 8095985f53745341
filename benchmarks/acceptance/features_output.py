"""What the second output of an exported graph, the pooled features, costs: the graph with it and without, in turn."""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import onnx
import onnxruntime

import lipsformer
from lipsformer.export.graph import build_graph

ROUNDS = {1: 60, 8: 12}  # of each batch size


def graph_of(name: str) -> onnx.ModelProto:
    """The folded float32 graph of an untrained model."""
    model = lipsformer.create_model(name)
    checkpoint = lipsformer.Checkpoint(
        model=model,
        config=model.config,
        classes=tuple(f"class {index}" for index in range(model.config.num_classes)),
        preprocessing=lipsformer.Preprocessing(image_size=model.config.image_size),
        metrics={},
    )
    return build_graph(checkpoint, max_batch=max(ROUNDS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="lipsformer_swin_tiny")
    graph = graph_of(parser.parse_args().model)
    sessions = {"two outputs": onnxruntime.InferenceSession(graph.SerializeToString())}
    kept = [output for output in graph.graph.output if output.name == "logits"]
    del graph.graph.output[:]
    graph.graph.output.extend(kept)
    sessions["logits alone"] = onnxruntime.InferenceSession(graph.SerializeToString())
    side = sessions["two outputs"].get_inputs()[0].shape[1]
    print("| batch | two outputs, ms | logits alone, ms | ratio |\n|---:|---:|---:|---:|")
    for batch, rounds in ROUNDS.items():
        pixels = np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), np.uint8)
        times: dict[str, list[float]] = {name: [] for name in sessions}
        for number in range(-2, rounds):
            for name in sorted(sessions, reverse=number % 2 == 1):
                started = time.perf_counter()
                sessions[name].run(None, {"pixels": pixels})
                if number >= 0:
                    times[name].append((time.perf_counter() - started) * 1000)
        two, one = (statistics.median(times[name]) for name in ("two outputs", "logits alone"))
        print(f"| {batch} | {two:.1f} | {one:.1f} | {two / one:.3f} |", flush=True)


if __name__ == "__main__":
    main()
