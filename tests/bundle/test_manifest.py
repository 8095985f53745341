"""The manifest: its promises are verified, and anything else is refused in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lipsformer.bundle.manifest import _sealed, read_manifest
from lipsformer.system.errors import GateError, InputError
from tests.support.trained import Trained


@pytest.fixture
def bundle(trained: Trained, tmp_path: Path) -> Path:
    return shutil.copytree(trained.bundle, tmp_path / "bundle")


def rewrite(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes the manifest, and its hash with it: it is what an export could have written."""
    path = bundle / "manifest.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(_sealed(data))


def test_it_comes_back_as_it_was_written(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    before = (bundle / "manifest.json").read_bytes()
    manifest.write(bundle)
    assert (bundle / "manifest.json").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(format=5), "bundle format 5, this version reads 4; export the bundle again"),
        (lambda m: m.pop("format"), "damaged manifest (KeyError: 'format')"),
        (lambda m: m.pop("max_batch"), "damaged manifest"),
        (lambda m: m.update(max_batch=None), "max_batch=None: a whole number of at least 1 is needed"),
        (lambda m: m.update(max_batch=True), "max_batch=True: a whole number"),
        (lambda m: m.update(max_batch=0), "max_batch=0: a whole number of at least 1 is needed"),
        (lambda m: m.update(metrics=[]), "metrics=[]: a table is needed"),
        (lambda m: m["files"][0].update(parity=None), "a graph or an engine needs target, precision and parity"),
        (lambda m: m["files"][0].update(parity=[]), "parity=[]: a table is needed"),
        (lambda m: m["files"][0].update(target="x"), "target='x': use 'ort', 'openvino', 'tensorrt' or 'tensorrt-rtx'"),
        (lambda m: m["files"][0].update(precision=None), "needs target, precision and parity"),
        (lambda m: m["files"][0].update(size="9"), "size='9': a whole number of at least 0 is needed"),
        (lambda m: m["files"][0].update(kind="exe"), "kind='exe': use 'onnx', 'engine', 'heat_maps', 'report'"),
        (lambda m: m["files"][0].update(kind="engine"), "engines, and only they, record what they were built with"),
        (lambda m: m["files"][0].update(built={}), "engines, and only they, record what they were built with"),
        (lambda m: m["files"][0].update(precision="bf16"), "bf16, and nothing else, is for OpenVINO and has a speedup"),
        (lambda m: m["files"][0].update(target="openvino"), "bf16, and nothing else, is for OpenVINO"),
        (lambda m: m["files"][0].update(speedup={}), "bf16, and nothing else, is for OpenVINO and has a speedup"),
        (lambda m: m.update(surprise=1), "damaged manifest"),
        (lambda m: m.update(classes="abc"), "its class names are not a list of strings"),
        (lambda m: m.update(preprocessing=None), "preprocessing"),
        (lambda m: m.update(files=[]), "it names no graph"),
        (lambda m: m.update(files=[1]), "damaged manifest"),
        (lambda m: m["files"][0].update(name="../ort-fp32.onnx"), "'../ort-fp32.onnx' is not the name of a file"),
        (lambda m: m["files"][0].update(name="/etc/passwd"), "'/etc/passwd' is not the name of a file in the bundle"),
        (lambda m: m["files"][0].update(name=None), "name=None: text is needed"),
        (lambda m: m["classes"].pop(), "13 class names for 14 outputs"),
        (lambda m: m["preprocessing"].update(image_size=64), "preprocessing gives 64 pixels to a graph of 32"),
    ],
)  # fmt: skip
def test_a_tampered_manifest_is_refused(change: Callable[[dict[str, Any]], object], message: str, bundle: Path) -> None:
    from lipsformer import load_predictor

    rewrite(bundle, change)
    with pytest.raises(InputError) as refusal:
        load_predictor(bundle)
    assert message in str(refusal.value)
    assert str(bundle) in str(refusal.value)


@pytest.mark.parametrize("content", [b"", b"null", b"[]", b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_manifest_at_all(content: bytes, bundle: Path) -> None:
    (bundle / "manifest.json").write_bytes(content)
    with pytest.raises(InputError, match="damaged manifest"):
        read_manifest(bundle)


def test_a_missing_file_fails_the_gate(bundle: Path) -> None:
    (bundle / "ort-fp32.onnx").unlink()
    with pytest.raises(GateError, match=r"ort-fp32\.onnx: missing from the bundle"):
        read_manifest(bundle)


@pytest.mark.parametrize("mask", [0x01, 0x20])
def test_any_changed_byte_is_noticed(mask: int, bundle: Path) -> None:
    path = bundle / "manifest.json"
    content = path.read_bytes()
    for place in range(0, len(content), 97):
        path.write_bytes(content[:place] + bytes([content[place] ^ mask]) + content[place + 1 :])
        with pytest.raises((GateError, InputError), match=r"manifest\.json: "):
            read_manifest(bundle)


def test_the_same_content_in_another_layout_is_noticed(bundle: Path) -> None:
    path = bundle / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text())))
    with pytest.raises(GateError, match=r"manifest\.json: its SHA-256 is not the one it was written with"):
        read_manifest(bundle)


def test_a_precision_is_found_or_refused(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    assert manifest.precisions == ("fp32",)
    assert manifest.graph("fp32") == manifest.graph()
    with pytest.raises(InputError, match=r"--precision int8: the bundle has fp32; choose one of them, or export again"):
        manifest.graph("int8")
