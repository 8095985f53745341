"""Checkpoints: what is written comes back bit for bit, and whatever else is given is refused in one line."""

from __future__ import annotations

import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lipsformer.checkpoints.checkpoint import load_checkpoint
from lipsformer.checkpoints.save import save_checkpoint
from lipsformer.images.preprocessing import Preprocessing
from lipsformer.model.config import SwinConfig
from lipsformer.model.swin import LipsFormerSwin
from lipsformer.system.errors import InputError

CONFIG = SwinConfig(
    image_size=32, window_size=8, embed_dim=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2), num_classes=3, drop_path=0.1
)
CLASSES = ("ant", "bee", "çedilla 🐜")
METRICS = {"accuracy": 0.5, "epoch": 3, "history": [1, 2]}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A good checkpoint."""
    torch.manual_seed(0)
    file = tmp_path / "model.safetensors"
    save_checkpoint(
        file,
        config=CONFIG,
        weights=LipsFormerSwin(CONFIG).state_dict(),
        classes=CLASSES,
        preprocessing=Preprocessing(image_size=32, crop_pct=0.9),
        metrics=METRICS,
    )
    return file


def rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Applies `change` to the checkpoint's metadata; the weights stay."""
    with safe_open(path, framework="pt") as file:
        metadata = json.loads(file.metadata()["lipsformer"])
    change(metadata)
    save_file(load_file(path), path, metadata={"lipsformer": json.dumps(metadata)})


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as failure:
        load_checkpoint(path)
    message = str(failure.value)
    assert message.startswith(f"{path}: ")
    assert len(message.splitlines()) == 1
    assert len(message) < 500
    return message


def test_comes_back_bit_for_bit(tmp_path: Path) -> None:
    model = LipsFormerSwin(CONFIG).to(memory_format=torch.channels_last)
    written = model.state_dict()
    spec = Preprocessing(image_size=32, crop_pct=0.9)
    file = tmp_path / "model.safetensors"
    save_checkpoint(
        file, config=CONFIG, weights=written, classes=CLASSES, preprocessing=spec, metrics=METRICS
    )  # fmt: skip
    loaded = load_checkpoint(str(file))
    assert (loaded.config, loaded.classes, loaded.preprocessing, loaded.metrics) == (CONFIG, CLASSES, spec, METRICS)
    assert not loaded.model.training
    state = loaded.model.state_dict()
    assert state.keys() == written.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in written.items())
    assert os.listdir(tmp_path) == ["model.safetensors"]  # noqa: PTH208


def test_the_same_model_gives_the_same_bytes(path: Path, tmp_path: Path) -> None:
    loaded = load_checkpoint(path)
    save_checkpoint(
        tmp_path / "again.safetensors",
        config=loaded.config,
        weights=loaded.model.state_dict(),
        classes=loaded.classes,
        preprocessing=loaded.preprocessing,
        metrics=loaded.metrics,
    )
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    assert "no such checkpoint; give the .safetensors file" in refusal(tmp_path / "none.safetensors")
    assert "no such checkpoint" in refusal(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.01, 0.5, 0.999])
def test_a_file_that_is_cut_off(share: float, path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    assert "not a readable checkpoint" in refusal(path)


def test_a_pickle_is_refused_and_not_executed(tmp_path: Path) -> None:
    mark = tmp_path / "executed"

    class Trap:
        def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
            return os.system, (f"touch {mark}",)

    for name, write in (("a", pickle.dump), ("b", torch.save)):
        file = tmp_path / f"{name}.safetensors"
        with file.open("wb") as handle:
            write({"model": Trap()}, handle)
        assert "not a readable checkpoint" in refusal(file)
    assert not mark.exists()


def test_another_safetensors_file(tmp_path: Path) -> None:
    file = tmp_path / "foreign.safetensors"
    save_file({"weight": torch.zeros(2)}, file)
    assert "a safetensors file, but not a LipsFormer checkpoint" in refusal(file)
    save_file({"weight": torch.zeros(2)}, file, metadata={"lipsformer": "no json"})
    assert "not a readable checkpoint" in refusal(file)
    save_file({"weight": torch.zeros(2)}, file, metadata={"lipsformer": "[" * 100_000})
    assert "not a readable checkpoint" in refusal(file)


def test_a_header_that_promises_too_much(tmp_path: Path) -> None:
    file = tmp_path / "huge.safetensors"
    file.write_bytes(struct.pack("<Q", 2**62) + b"{}")
    assert "not a readable checkpoint" in refusal(file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(format=2), "checkpoint format 2, this version reads 1; update lipsformer"),
        (lambda m: m.pop("format"), "its metadata cannot be read ('format')"),
        (lambda m: m.pop("classes"), "its metadata cannot be read ('classes')"),
        (lambda m: m.update(classes="abc"), "its class names are not a list of strings"),
        (lambda m: m.update(classes=["a", "b", 3]), "its class names are not a list of strings"),
        (lambda m: m.update(classes=["a", "b"]), "2 class names for 3 outputs"),
        (lambda m: m.update(config=[1]), "its metadata cannot be read"),
        (lambda m: m.update(metrics=7), "its metadata cannot be read"),
        (lambda m: m["config"].update(architecture="vit"), "architecture 'vit' is not known"),
        (lambda m: m["config"].update(depths=7), "depths=7: 1 to 4 whole numbers"),
        (lambda m: m["config"].update(image_size=33), "image_size=33 cannot be tiled"),
        (lambda m: m["config"].update(color="red"), "unknown model setting 'color'"),
        (lambda m: m["preprocessing"].update(image_size=-1), "image_size=-1 must be a whole number"),
        (lambda m: m["preprocessing"].pop("image_size"), "image_size"),
        (lambda m: m["preprocessing"].update(image_size=64), "preprocessing gives 64 pixels to a model of 32"),
        (lambda m: m.update(preprocessing=None), "its metadata cannot be read"),
        (lambda m: m["config"].update(embed_dim=16), "configuration (head.weight is [3, 64], needed [3, 128])"),
        (lambda m: m["config"].update(depths=[1, 1, 2, 1]), "layers.2.blocks.1.alpha1.scale is missing, needed [32]"),
        (lambda m: m["config"].update(embed_dim=2**12), "do not fit its configuration"),
        (lambda m: m["config"].update(embed_dim=2**30), "embed_dim=1073741824: a whole number from 2 to 4096"),
    ],
)  # fmt: skip
def test_tampered_metadata(change: Callable[[dict[str, Any]], object], message: str, path: Path) -> None:
    rewrite(path, change)
    assert message in refusal(path)


def test_metadata_that_is_no_object(path: Path) -> None:
    save_file(load_file(path), path, metadata={"lipsformer": "[1]"})
    assert "its metadata cannot be read" in refusal(path)


def test_a_tensor_too_many(path: Path) -> None:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file({**load_file(path), "zebra": torch.zeros(1)}, path, metadata=metadata)
    assert "(zebra is [1], needed nothing of this name)" in refusal(path)


def test_a_failed_save_keeps_the_old_checkpoint(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(TypeError):
        save_checkpoint(
            path,
            config=CONFIG,
            weights={},
            classes=CLASSES,
            preprocessing=Preprocessing(image_size=32),
            metrics={"not json": object()},
        )
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]
