"""Prediction: what may be a model, what is said when it is none, and which device really runs it."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
import onnxruntime
import pytest

from lipsformer import load_predictor
from lipsformer.datasets import open_labeled
from lipsformer.evaluation.evaluate import evaluate
from lipsformer.images.samples import SAMPLES
from lipsformer.inference import runtimes
from lipsformer.inference.predictor import softmax
from lipsformer.inference.runtimes import Outputs
from lipsformer.system.errors import InputError
from tests.support.trained import Trained


def test_ranking_is_by_falling_score_and_stable(trained: Trained) -> None:
    predictor = load_predictor(trained.bundle)
    ranked = predictor.classify(np.array([0.0, 2.0, 1.0, 2.0] + [0.0] * 10, dtype=np.float32), None, 3)
    assert [p.index for p in ranked] == [1, 3, 2]
    assert [p.label for p in ranked] == [trained.classes[i] for i in (1, 3, 2)]
    assert len(predictor.classify(np.zeros(14, dtype=np.float32), None, 99)) == 14


def test_softmax_survives_large_logits() -> None:
    scores = softmax(np.array([[1e4, 0.0], [-1e4, -1e4]], dtype=np.float32))
    assert scores.tolist() == [[1.0, 0.0], [0.5, 0.5]]


def test_more_images_than_a_batch(trained: Trained) -> None:
    photos = sorted(SAMPLES.glob("*.jpg")) * 3
    answers = load_predictor(trained.bundle).predict(photos, 1)
    assert len(answers) == 42
    assert answers[:14] == answers[14:28]


def test_evaluation_counts_what_prediction_says(trained: Trained) -> None:
    predictor = load_predictor(trained.bundle)
    split = open_labeled(trained.data, trained.classes)
    answers = predictor.predict([split.where(index) for index in range(len(split))], 5)
    first = [answer[0].index == label for answer, label in zip(answers, split.labels, strict=True)]
    five = [label in [p.index for p in answer] for answer, label in zip(answers, split.labels, strict=True)]
    found = evaluate(predictor, split)
    counted = found.predictions
    assert (counted.images, counted.top1, counted.top5) == (14, sum(first) / 14, sum(five) / 14)
    perfect = dataclasses.replace(split, labels=np.array([answer[0].index for answer in answers]))
    assert evaluate(predictor, perfect).predictions.top1 == 1.0
    second = dataclasses.replace(split, labels=np.array([answer[1].index for answer in answers]))
    found = evaluate(predictor, second)
    assert (found.predictions.top1, found.predictions.top5) == (0.0, 1.0)


def test_no_batch_is_larger_than_the_proved_one(trained: Trained) -> None:
    class Recorder:
        provider = "recorder"
        batches: ClassVar[list[int]] = []

        def infer(self, pixels: np.ndarray) -> Outputs:
            self.batches.append(len(pixels))
            return Outputs(np.zeros((len(pixels), 14), dtype=np.float32), None)

    assert load_predictor(trained.bundle).max_batch == load_predictor(trained.bundle / "ort-fp32.onnx").max_batch == 16
    predictor = dataclasses.replace(load_predictor(trained.bundle), runtime=Recorder(), max_batch=4)
    predictor.predict(sorted(SAMPLES.glob("*.jpg")))
    evaluate(predictor, open_labeled(trained.data, trained.classes))
    assert Recorder.batches == [4, 4, 4, 2] * 2


@pytest.mark.parametrize(
    "text",
    [None, "no json", "[]", "3", "{}", '{"classes": 3, "preprocessing": {"image_size": 32}}', '{"classes": ["a"]}'],
)
def test_a_graph_without_usable_metadata_is_refused(text: str | None, trained: Trained, tmp_path: Path) -> None:
    graph = onnx.load(trained.bundle / "ort-fp32.onnx")
    del graph.metadata_props[:]
    if text is not None:
        onnx.helper.set_model_props(graph, {"lipsformer": text})
    path = tmp_path / "ort-fp32.onnx"
    onnx.save(graph, path)
    with pytest.raises(InputError, match=r"ort-fp32\.onnx: "):
        load_predictor(path)


def test_class_names_must_match_the_outputs(trained: Trained, tmp_path: Path) -> None:
    graph = onnx.load(trained.bundle / "ort-fp32.onnx")
    metadata = json.loads(graph.metadata_props[0].value)
    metadata["classes"].pop()
    onnx.helper.set_model_props(graph, {"lipsformer": json.dumps(metadata)})
    onnx.save(graph, tmp_path / "ort-fp32.onnx")
    with pytest.raises(InputError, match="13 class names for 14 outputs"):
        load_predictor(tmp_path / "ort-fp32.onnx")


def test_a_cuda_build_that_falls_back_says_so(
    trained: Trained, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the GPU wheel does on a machine without a GPU: it lists CUDA, starts on the CPU and says nothing."""
    listed = [runtimes.CUDA, "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: listed)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: sys.stdout.write("noise"))
    session = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda source, options, _: session(source, options))
    predictor = load_predictor(trained.bundle)
    assert predictor.runtime.provider == "CPUExecutionProvider"
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("ONNX Runtime is built for CUDA but runs on the CPU here")
    load_predictor(trained.bundle, "cpu")
    assert capsys.readouterr().err == ""  # as asked for
    with pytest.raises(InputError, match="--device cuda: ONNX Runtime fell back to the CPU"):
        load_predictor(trained.bundle, "cuda")
