"""Photos of 12 megapixels, decoded in full and reduced: the time of one, and the throughput of a server for each."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import statistics
import time
from typing import Any

from bodies import expectations, images
from bundles import bundle
from load import Load, generate
from memory import processor_seconds, spent
from servers import Server, our_server

from lipsformer import Preprocessing
from lipsformer.inference.predictor import load_predictor

__all__ = ["add_arguments", "run", "table"]

SIZES = (32, 96, 224)
SCALES = ("full", "reduced")
DECODES = 15  # of each kind, in turn


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--models", nargs="+", default=["cifar10:fp32"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6, help="of a turn")
    parser.add_argument("--clients", type=int, default=16)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    return {"decode": _decode(), "serve": {model: _serve(model, arguments) for model in arguments.models}}


def _decode() -> list[dict[str, Any]]:
    content = images()["large"]
    specs = {
        (size, scale): Preprocessing(image_size=size, jpeg_scale=scale)  # type: ignore[arg-type]
        for size, scale in itertools.product(SIZES, SCALES)
    }
    times: dict[tuple[int, str], list[float]] = {key: [] for key in specs}
    for _, (key, spec) in itertools.product(range(DECODES), specs.items()):
        started = time.perf_counter()
        spec.read(content)
        times[key].append((time.perf_counter() - started) * 1000)
    rows = []
    for size in SIZES:
        full, reduced = (times[size, scale] for scale in SCALES)
        exact, found = (specs[size, scale].read(content).astype(int) for scale in SCALES)
        rows.append(
            {
                "size": size,
                "full_ms": statistics.median(full),
                "reduced_ms": statistics.median(reduced),
                "ratio": statistics.median(one / other for one, other in zip(full, reduced, strict=True)),
                "levels": [float(abs(exact - found).mean()), int(abs(exact - found).max())],
            }
        )
    return rows


def _serve(model: str, arguments: argparse.Namespace) -> dict[str, Any]:
    name, _, precision = model.partition(":")
    paths = {"full": bundle(name, arguments.work), "reduced": bundle(f"{name}-reduced", arguments.work)}
    expected = {scale: expectations(load_predictor(path, precision=precision)) for scale, path in paths.items()}
    rounds = []
    with contextlib.ExitStack() as stack:
        servers = {
            scale: stack.enter_context(
                our_server(path, arguments.work / f"{scale}.log", "--precision", precision or "fp32")
            )
            for scale, path in paths.items()
        }
        for scale, server in servers.items():
            _load(server, expected[scale], arguments, 2)
        for number in range(arguments.rounds):
            order = SCALES if number % 2 else SCALES[::-1]
            rounds.append(
                {scale: _load(servers[scale], expected[scale], arguments, arguments.seconds) for scale in order}
            )
            print(model, {scale: rounds[-1][scale]["per_second"] for scale in SCALES}, flush=True)
    rates = {scale: statistics.median(turn[scale]["per_second"] for turn in rounds) for scale in SCALES}
    ratios = [turn["reduced"]["per_second"] / turn["full"]["per_second"] for turn in rounds]
    return {"rounds": rounds, **rates, "ratio": statistics.median(ratios), "ratio_range": [min(ratios), max(ratios)]}


def _load(server: Server, expected: dict[str, str], arguments: argparse.Namespace, seconds: float) -> dict[str, Any]:
    load = Load(
        url=server.url, mix={"large": 1}, expected=expected, seconds=seconds + 1, warm_up=1, clients=arguments.clients
    )
    before = processor_seconds(server)
    report = generate(load)
    cpu = sum(spent(before, processor_seconds(server), report["requests"]))
    return {"cpu_ms": cpu, **{name: report[name] for name in ("per_second", "outcomes", "latency_ms")}}


def table(result: dict[str, Any]) -> str:
    lines = [
        "| size | full, ms | reduced, ms | full / reduced | difference in levels, mean and most |",
        "|---:|---:|---:|---:|---:|",
    ]
    for row in result["decode"]:
        mean, most = row["levels"]
        lines.append(
            f"| {row['size']} px | {row['full_ms']:.0f} | {row['reduced_ms']:.0f} | **{row['ratio']:.1f}** "
            f"| {mean:.2f}, {most} |"
        )
    lines += [
        "",
        "| model | full, photos/s | reduced | reduced / full | lowest to highest | processor ms a photo: full, reduced "
        "| p50 ms: full, reduced |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for model, row in result["serve"].items():
        low, high = row["ratio_range"]
        cpu, p50 = (
            ", ".join(f"{statistics.median(pick(turn[scale]) for turn in row['rounds']):.0f}" for scale in SCALES)
            for pick in (lambda turn: turn["cpu_ms"], lambda turn: turn["latency_ms"]["200"]["p50"])
        )
        lines.append(
            f"| {model} | {row['full']:.1f} | {row['reduced']:.1f} | **{row['ratio']:.2f}** | {low:.2f} to {high:.2f} "
            f"| {cpu} | {p50} |"
        )
    return "\n".join(lines)
