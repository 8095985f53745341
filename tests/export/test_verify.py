"""`lipsformer verify`: a good bundle is proved again, and a changed one is refused wherever it is used."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from lipsformer import load_predictor
from lipsformer.bundle.manifest import read_manifest
from lipsformer.export import verify_bundle
from lipsformer.serving.pipeline.loaded_bundle import LoadedBundle
from lipsformer.serving.settings import Settings
from lipsformer.system.atomic import sha256_of
from lipsformer.system.errors import GateError, InputError
from tests.bundle.test_manifest import rewrite
from tests.support.trained import Trained

NAMES = ("manifest.json", "ort-fp32.onnx", "parity.json", "parity.md", "parity.npz", "parity.png")


@pytest.fixture
def bundle(trained: Trained, tmp_path: Path) -> Path:
    return shutil.copytree(trained.bundle, tmp_path / "bundle")


def test_a_good_bundle_is_proved_by_what_it_carries(trained: Trained) -> None:
    found = verify_bundle(trained.bundle)
    assert found.failures == []
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert data["passed"]
    assert data["hashes_checked"] == 5
    assert data["versions"] == {}
    (file,) = data["parity"]["files"]
    assert file["provider"] == "CPUExecutionProvider"
    assert file["thresholds"]["relative_l2"] == 1e-5
    assert 20 <= data["parity"]["photos"] <= 24
    assert found.to_text().endswith("bundle: verified")


def test_the_checkpoint_answers_anew(trained: Trained, bundle: Path, tmp_path: Path) -> None:
    found = verify_bundle(trained.bundle, checkpoint=trained.checkpoint, data=trained.data)
    assert found.failures == []
    assert found.to_dict()["parity"]["checkpoint_accuracy"] is not None
    other = tmp_path / "other.safetensors"
    shutil.copy(trained.checkpoint, other)
    rewrite(bundle, lambda m: m.update(checkpoint_sha256="0" * 64))
    with pytest.raises(GateError, match=r"other\.safetensors: not the checkpoint that .*bundle was made from"):
        verify_bundle(bundle, checkpoint=other)
    with pytest.raises(InputError, match="--data needs --checkpoint"):
        verify_bundle(bundle, data=trained.data)


def test_a_graph_that_answers_otherwise_fails_though_its_hash_is_right(bundle: Path) -> None:
    path = bundle / "ort-fp32.onnx"
    graph = onnx.load(path)
    tensor = max(graph.graph.initializer, key=lambda t: np.prod(t.dims) if t.data_type == onnx.TensorProto.FLOAT else 0)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.01), tensor.name))
    onnx.save(graph, path)
    rewrite(bundle, lambda m: m["files"][0].update(sha256=sha256_of(path)))
    found = verify_bundle(bundle)
    assert found.failures[0].startswith("ort-fp32.onnx on CPUExecutionProvider: batch 1: relative_l2")
    assert "FAILED" in found.to_text()


def test_other_versions_are_told_and_are_no_failure(bundle: Path) -> None:
    rewrite(bundle, lambda m: m["versions"].update(onnxruntime="1.0"))
    found = verify_bundle(bundle, device="cpu")
    assert found.failures == []
    assert "onnxruntime: exported with 1.0, here is" in found.to_text()


def test_a_device_that_does_not_work_is_bad_usage(bundle: Path) -> None:
    with pytest.raises(InputError, match="--device cuda"):
        verify_bundle(bundle, device="cuda")
    with pytest.raises(InputError, match="--device tpu"):
        verify_bundle(bundle, device="tpu")


@pytest.mark.parametrize("name", NAMES)
def test_one_flipped_byte_is_refused_by_whatever_uses_the_bundle(name: str, bundle: Path) -> None:
    path = bundle / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    settings = Settings.from_environment({"LIPSFORMER_BUNDLE": str(bundle)})
    for use in (verify_bundle, load_predictor, lambda _: LoadedBundle.load(settings, on_fault=lambda _: None)):
        with pytest.raises((GateError, InputError)) as refusal:
            use(bundle)
        assert str(refusal.value).startswith(f"{path}: ")


def test_every_file_of_the_bundle_is_tried_above(trained: Trained) -> None:
    assert {path.name for path in trained.bundle.iterdir()} == set(NAMES)
    assert {file.name for file in read_manifest(trained.bundle).files} | {"manifest.json"} == set(NAMES)


def test_a_checkpoint_may_be_named(trained: Trained) -> None:
    with pytest.raises(GateError, match="not the checkpoint that"):
        verify_bundle(trained.bundle, checkpoint=Path("lipsformer_cifar10"), data=trained.data)
