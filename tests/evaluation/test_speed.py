"""`lipsformer benchmark`: every model is measured at every batch size; never how fast it was."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from lipsformer.bundle.manifest import BundleFile, read_manifest
from lipsformer.evaluation.speed.measure import _parity, measure_speed, parse_batches
from lipsformer.evaluation.speed.worker import ModelFacts
from lipsformer.images.preprocessing import Preprocessing
from lipsformer.system.errors import InputError, LipsFormerError
from tests.support.command import Run
from tests.support.trained import Trained

BATCHES, ROUNDS = (1, 3), 2
WRONG = "ort-fp16.onnx"  # in the bundle below: a graph that answers wrongly


def no_constant(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


@pytest.fixture(scope="module")
def bundle(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small bundle, and in it a graph that answers wrongly, one that is not for ONNX Runtime, and an engine."""
    folder = tmp_path_factory.mktemp("benchmark") / "bundle"
    shutil.copytree(trained.bundle, folder)
    manifest = read_manifest(folder)
    graph = onnx.load(folder / "ort-fp32.onnx")
    (bias,) = (value for value in graph.graph.initializer if list(value.dims) == [len(trained.classes)])
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + np.float32(0.1), bias.name))
    onnx.save(graph, folder / WRONG)
    shutil.copy(folder / "ort-fp32.onnx", folder / "tensorrt-fp32.onnx")
    (folder / "tensorrt-fp32.engine").write_bytes(b"not for this machine")
    parity = manifest.graph().parity
    more = (
        BundleFile.describe(folder / WRONG, "onnx", target="ort", precision="fp16", parity=parity),
        BundleFile.describe(folder / "tensorrt-fp32.onnx", "onnx", target="tensorrt", precision="fp32", parity=parity),
        BundleFile.describe(
            folder / "tensorrt-fp32.engine",
            "engine",
            target="tensorrt",
            precision="fp32",
            parity=parity,
            built={"flavour": "tensorrt"},
        ),
    )
    dataclasses.replace(manifest, files=(*manifest.files, *more)).write(folder)
    return folder


@pytest.mark.slow
def test_everything_is_measured_and_written(run: Run, trained: Trained, bundle: Path, tmp_path: Path) -> None:
    output = tmp_path / "benchmark"
    options = ["--batch", "3,1", "--rounds", ROUNDS, "--seconds", 0, "--threads", 1, "--device", "cpu", "--json"]
    status, out, err = run("benchmark", trained.checkpoint, bundle, *options, "--output", output)
    assert status == 0, err
    report: dict[str, Any] = json.loads(out, parse_constant=no_constant)
    assert report == json.loads((output / "benchmark.json").read_text())
    assert sorted(path.name for path in output.iterdir()) == ["benchmark.json", "benchmark.md", "benchmark.png"]
    assert (output / "benchmark.png").read_bytes().startswith(b"\x89PNG")

    checkpoint, graph, wrong = report["subjects"]
    assert checkpoint["label"] == str(trained.checkpoint)
    assert [checkpoint["provider"], graph["provider"]] == ["torch-cpu", "CPUExecutionProvider"]
    assert graph["label"] == f"{bundle}/ort-fp32.onnx"
    assert graph["file_bytes"] == (bundle / "ort-fp32.onnx").stat().st_size
    assert graph["multiply_adds"] == checkpoint["multiply_adds"] > 0
    assert graph["proof"] is not None
    assert checkpoint["proof"] is None

    # Answers, beside the speed: equal to the first model's, but for the graph that is wrong.
    assert (checkpoint["relative_l2"], checkpoint["top1_agreement"]) == (0, 1)
    assert 0 < graph["relative_l2"] < 1e-5
    assert graph["top1_agreement"] == 1
    assert wrong["relative_l2"] > 1e-3

    rows = report["measurements"]
    assert [(row["batch"], row["subject"]) for row in rows] == [(batch, i) for batch in BATCHES for i in range(3)]
    for row in rows:
        assert row["calls"] == 3 * ROUNDS  # the least, as a turn was to last no time
        assert len(row["rounds_ms"]) == ROUNDS
        assert 0 < row["p50_ms"] <= row["p99_ms"]
        assert row["images_per_second"] == pytest.approx(1000 * row["batch"] / row["p50_ms"])
        assert row["speedup"] > 0
        assert row["memory_bytes"] > 0
        assert row["gpu_memory_bytes"] is None
        assert (row["sgemm_share"] is None) == (row["subject"] == 2)  # of float32 alone
    assert [row["speedup"] for row in rows if row["subject"] == 0] == [1, 1]
    assert all(larger["memory_bytes"] >= smaller["memory_bytes"] for smaller, larger in zip(rows, rows[3:]))  # noqa: B905

    table = (output / "benchmark.md").read_text()
    assert [item["label"] for item in report["refused"]] == [
        f"{bundle}/tensorrt-fp32.onnx",
        f"{bundle}/tensorrt-fp32.engine",
    ]
    for item in report["refused"]:
        assert f"- {item['label']}: {item['reason']}" in table
    assert sum(line.startswith("| ") for line in table.splitlines()) == 2 + len(rows)


def test_what_is_not_alike_is_not_compared() -> None:
    def facts(logits: list[list[float]], size: int = 32) -> ModelFacts:
        preprocessing = Preprocessing(image_size=size)
        return ModelFacts(provider="", preprocessing=preprocessing, logits=np.float32(logits), memory=(), gpu_memory=())

    answers = [[1.0, 0.0], [0.0, 2.0]]
    first = facts(answers)
    assert _parity(first, first) == (0, 1)
    assert _parity(facts([[0.0, 1.0], [0.0, 2.0]]), first) == (pytest.approx(2**0.5), 0.5)
    assert _parity(facts(answers, size=64), first) == (None, None)
    assert _parity(facts([[1.0], [0.0]]), first) == (None, None)
    assert _parity(facts([[float("nan"), 0.0], [0.0, 2.0]]), first)[0] is None  # NaN is not JSON


@pytest.mark.parametrize("text", ["", "x", "1,x", "0", "-1", "1.5", "1,,8", "1000000", "٣"])
def test_batch_sizes_are_whole_numbers(text: str) -> None:
    with pytest.raises(InputError, match="give whole numbers from 1 on"):
        parse_batches(text)


def test_batch_sizes_are_read() -> None:
    assert parse_batches("8, 1") == (8, 1)
    with pytest.raises(InputError, match="a batch size is given twice"):
        parse_batches("1,8,1")


def test_what_cannot_be_measured_is_refused_in_one_line(
    run: Run, trained: Trained, bundle: Path, tmp_path: Path
) -> None:
    def refused(*arguments: object) -> str:
        status, out, err = run("benchmark", *arguments)
        assert (status, out, err.count("\n")) == (2, "", 1), err
        return err

    assert "none.onnx: no such file" in refused(trained.bundle, tmp_path / "none.onnx")
    assert "not a model" in refused(trained.data / ".." / "bundle" / "manifest.json")
    assert "exported for batches up to 16" in refused(trained.bundle, "--batch", "1,17")
    assert "exported for batches up to 16" in refused(trained.bundle / "ort-fp32.onnx", "--batch", 17)
    assert "--rounds 0" in refused(trained.bundle, "--rounds", 0)
    assert "--seconds nan" in refused(trained.bundle, "--seconds", "nan")
    assert "--threads 0" in refused(trained.bundle, "--threads", 0)
    assert "--device tpu" in refused(trained.bundle, "--device", "tpu")
    assert "exists already" in refused(trained.bundle, "--output", trained.data)
    shutil.copy(bundle / "tensorrt-fp32.engine", trained.bundle.parent / "lonely.engine")
    assert "not a bundle" in refused(trained.bundle.parent / "lonely.engine")
    assert "tensorrt-fp32.engine" in refused(bundle / "tensorrt-fp32.engine")  # named itself, it is not passed over


def test_a_model_that_does_not_load_leaves_no_output(trained: Trained, run: Run, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.safetensors"
    content = bytearray(trained.checkpoint.read_bytes())
    damaged.write_bytes(content[:-8])
    status, _, err = run("benchmark", damaged, "--output", tmp_path / "out")
    assert (status, err.count("\n")) == (2, 1)
    assert sorted(tmp_path.iterdir()) == [damaged]


def test_a_process_that_dies_is_named_with_a_hint(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lipsformer.evaluation.speed.measure.MeasuredModel", Dying)
    monkeypatch.setattr("lipsformer.evaluation.speed.measure.MatrixProduct", Idle)
    graph = trained.bundle / "ort-fp32.onnx"
    with pytest.raises(LipsFormerError, match=r"^the graph: its process ended \(SIGKILL\); .*memory.* --batch"):
        measure_speed([("the graph", graph)], batches=[1], rounds=1, seconds=0, threads=1, device="cpu")


class Idle:
    """Takes no time."""

    def __init__(self, **_: Any) -> None:
        pass

    def turn(self) -> list[float]:
        return [1.0]


class Dying:
    """A model whose process is killed when it is measured."""

    def __init__(self, **_: Any) -> None:
        pass

    def facts(self) -> None:
        return None

    def turn(self, **_: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_bundle_of_which_nothing_runs_is_refused(bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    manifest = read_manifest(copy)
    for file in manifest.files:
        if file.target == "ort":
            (copy / file.name).write_bytes(b"not a graph")
    files = [
        dataclasses.replace(file, sha256=BundleFile.describe(copy / file.name, "report").sha256)
        for file in manifest.files
    ]
    dataclasses.replace(manifest, files=tuple(files)).write(copy)
    with pytest.raises(InputError, match=r"nothing can run here: .*engines are built from.*cannot load it"):
        measure_speed([(str(copy), copy)], batches=[1], rounds=1, seconds=0, threads=1, device="cpu")
