"""Any trained model can be a teacher, and what cannot is refused in one line."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lipsformer import InputError, load_checkpoint, load_predictor
from lipsformer.train.distillation.settings import Distillation, TeacherPreprocessing
from lipsformer.train.distillation.teacher import Teacher, open_teacher
from tests.support.bf16 import add_bf16, needs_bf16
from tests.support.models.teachers import CLASSES_TABLE, onnx_weights, write_classes, write_onnx
from tests.support.trained import Trained

CPU = torch.device("cpu")
NAMES = ("pear", "apple", "plum")


def opened(teacher: Path | str, table: dict[str, Any] | None = None, **settings: Any) -> Teacher:
    preprocessing = None if table is None else TeacherPreprocessing(**table)
    return open_teacher(Distillation(teacher=str(teacher), preprocessing=preprocessing, **settings), CPU, torch.float32)


def refusal(teacher: Path | str, table: dict[str, Any] | None = None, **settings: Any) -> str:
    with pytest.raises(InputError) as caught:
        opened(teacher, table, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_checkpoint_runs_in_pytorch(trained: Trained) -> None:
    found = opened(trained.checkpoint)
    model = load_checkpoint(trained.checkpoint).model
    images = torch.randn(3, 3, 32, 32)
    assert torch.equal(found.infer(images), model(images))
    assert (found.classes, found.outputs, found.input.image_size) == (trained.classes, 14, 32)
    assert "M parameters, 32 px, PyTorch on cpu" in str(found)
    features = opened(trained.checkpoint, kind="features")
    assert torch.equal(features.infer(images), model.forward_features(images))
    assert features.outputs == 128


def test_a_bundle_and_its_graph_run_in_their_runtime(trained: Trained) -> None:
    graph = load_predictor(trained.bundle).file
    pixels = torch.randint(0, 256, (19, 32, 32, 3), dtype=torch.uint8)  # more than their largest batch
    wanted = load_predictor(graph, threads=1).runtime.infer(pixels.numpy()).logits
    for path in (trained.bundle, graph):
        found = opened(path)
        torch.testing.assert_close(found.infer(pixels), torch.from_numpy(wanted), atol=1e-4, rtol=1e-4)
        assert (found.classes, found.outputs, found.input.dtype) == (trained.classes, 14, torch.uint8)


@pytest.mark.openvino
@needs_bf16
def test_a_bundle_teaches_the_same_on_every_cpu(trained: Trained, tmp_path: Path) -> None:
    bundle = add_bf16(trained.bundle, tmp_path / "bundle")
    assert load_predictor(bundle).precision == "bf16"
    pixels = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)
    exact = opened(trained.bundle).infer(pixels)
    torch.testing.assert_close(opened(bundle).infer(pixels), exact, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("batch", ["batch", 1, 4])
def test_a_foreign_graph_is_described_by_the_recipe(tmp_path: Path, layout: str, batch: int | str) -> None:
    path = write_onnx(tmp_path / "t.onnx", layout=layout, batch=batch)
    names = write_classes(tmp_path / "names.txt", *NAMES)
    found = opened(path, CLASSES_TABLE | {"layout": layout, "classes": str(names)})
    images = torch.randn(5, 3, 16, 16)
    answers = found.infer(images if layout == "nchw" else images.permute(0, 2, 3, 1))
    torch.testing.assert_close(answers, images.mean(dim=(2, 3)) @ torch.from_numpy(onnx_weights(3)))
    assert found.classes == NAMES
    assert found.input.mean == (0.5, 0.4, 0.3)


def test_a_foreign_graph_of_pixels_needs_no_normalization(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "t.onnx", uint8=True)
    found = opened(path, {"image_size": 16}, kind="features")
    assert (found.input.dtype, found.input.high) == (torch.uint8, 255.0)
    assert "remove mean and std" in refusal(path, CLASSES_TABLE)


def test_weights_in_another_file_are_part_of_the_hash(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "t.onnx", external=True)
    before = opened(path, CLASSES_TABLE, kind="features")
    write_onnx(path, external=True, factor=2.0)
    assert opened(path, CLASSES_TABLE, kind="features").sha256 != before.sha256
    assert "changed since the training began" in refusal(path, CLASSES_TABLE, kind="features", sha256=before.sha256)


def test_changed_class_names_are_noticed(tmp_path: Path) -> None:
    path, names = write_onnx(tmp_path / "t.onnx"), write_classes(tmp_path / "names.txt", *NAMES)
    table = CLASSES_TABLE | {"classes": str(names)}
    recorded = opened(path, table).classes_sha256
    write_classes(names, *reversed(NAMES))
    assert "its class names: changed since" in refusal(path, table | {"classes_sha256": recorded})


def test_a_teacher_that_cannot_be_used_is_refused(tmp_path: Path, trained: Trained) -> None:
    path = write_onnx(tmp_path / "t.onnx")
    two = write_classes(tmp_path / "two.txt", "a", "b")
    (tmp_path / "text.onnx").write_text("no graph")
    assert "none.onnx: no such file or folder" in refusal(tmp_path / "none.onnx")
    assert "not a readable ONNX file" in refusal(tmp_path / "text.onnx", CLASSES_TABLE)
    (tmp_path / "empty.onnx").touch()  # which protobuf takes for a message without any field
    assert "it has no graph); is the file whole?" in refusal(tmp_path / "empty.onnx", CLASSES_TABLE)
    assert "say what it takes in the recipe's [distillation.preprocessing]" in refusal(path)
    assert "needs mean and std" in refusal(path, {"image_size": 16})
    assert "remove [distillation.preprocessing]" in refusal(trained.checkpoint, CLASSES_TABLE)
    assert "only a timm teacher takes them" in refusal(trained.checkpoint, weights="w.safetensors")
    assert "2 class names for 3 outputs" in refusal(path, CLASSES_TABLE | {"classes": str(two)})
    assert "correct image_size or layout" in refusal(path, CLASSES_TABLE | {"image_size": 32})
    assert "correct image_size or layout" in refusal(path, CLASSES_TABLE | {"layout": "nhwc"})
    assert "outputs answer; name one as output" in refusal(path, CLASSES_TABLE | {"output": "pooled"})
    assert "outputs of shape [2, 3, 16, 16] for 2 images, [2, K] is needed" in refusal(
        write_onnx(tmp_path / "map.onnx", pooled=False), CLASSES_TABLE
    )
    assert "are not finite" in refusal(write_onnx(tmp_path / "nan.onnx", factor=float("nan")), CLASSES_TABLE)


class Timm(nn.Module):
    """What a timm model has, with a mean instead of a network."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(3, classes)

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        return images

    def forward_head(self, features: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        pooled = features.mean(dim=(2, 3))
        return pooled if pre_logits else self.fc(pooled)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(images))


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Stands in for timm, whose weights need a network; lists the options of each created model."""
    calls: list[dict[str, Any]] = []

    def create_model(name: str, num_classes: int | None = None, **options: Any) -> nn.Module:
        if name != "net":
            raise RuntimeError(f"Unknown model ({name})")
        calls.append(options | {"num_classes": num_classes})
        torch.manual_seed(0)
        return Timm(num_classes or 5)

    config = {"input_size": (3, 20, 20), "mean": (0.5,) * 3, "std": (0.25,) * 3, "interpolation": "bicubic"}
    modules = {"timm": types.ModuleType("timm"), "timm.data": types.ModuleType("timm.data")}
    modules["timm"].create_model = create_model  # type: ignore[attr-defined]
    modules["timm.data"].resolve_model_data_config = lambda model: config  # type: ignore[attr-defined]
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return calls


def test_a_timm_model_brings_its_preprocessing(timm: list[dict[str, Any]], tmp_path: Path) -> None:
    found = opened("timm:net", kind="features")
    assert (found.outputs, found.input.image_size, found.input.mean) == (3, 20, (0.5,) * 3)
    assert timm == [{"pretrained": True, "num_classes": None}]
    names = write_classes(tmp_path / "names.txt", *"abcde")
    logits = opened("timm:net", {"classes": str(names), "image_size": 24})
    assert (logits.outputs, logits.input.image_size, logits.classes) == (5, 24, tuple("abcde"))
    assert len(logits.sha256) == 64


def test_weights_for_a_timm_model_come_from_a_file(timm: list[dict[str, Any]], tmp_path: Path) -> None:
    names = write_classes(tmp_path / "names.txt", "a", "b")
    weights = tmp_path / "w.safetensors"
    weights.touch()
    opened("timm:net", {"classes": str(names)}, weights=str(weights))
    overlay = {"file": str(weights), "num_classes": 2}
    assert timm == [{"pretrained": True, "num_classes": 2, "pretrained_cfg_overlay": overlay}]
    assert "none.safetensors: no such file" in refusal("timm:net", weights="none.safetensors")
    assert "a .safetensors file is needed" in refusal("timm:net", weights="w.pth")
    assert "cannot be loaded (Unknown model (none))" in refusal("timm:none")
    assert "2 class names for 5 outputs" in refusal("timm:net", {"classes": str(names)})


def test_without_timm_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    assert "--teacher timm:net: timm is not installed; pip install 'lipsformer[timm]'" in refusal("timm:net")


def test_the_hash_of_a_timm_model_is_that_of_its_weights(timm: list[dict[str, Any]]) -> None:
    first, second = opened("timm:net", kind="features"), opened("timm:net", kind="features")
    assert first.sha256 == second.sha256
    assert np.isfinite(first.infer(torch.ones(1, 3, 20, 20)).numpy()).all()
