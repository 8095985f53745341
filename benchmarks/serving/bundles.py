"""The bundles that are served, made once in a working folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from null_model import write_null_bundle
from PIL import Image, ImageOps

from lipsformer.images.samples import SAMPLES

__all__ = ["bundle"]

# Random weights tell photos hardly apart, less than int8's noise is; how fast a graph runs does not depend on them.
NO_GATE = ["--threshold", "int8.top1_agreement=0"]


def bundle(name: str, work: Path) -> Path:
    """The bundle `cifar10` (the trained model), `unfolded` (the same with another graph), `tiny` or `null`.

    `tiny` is of full size, with random weights, in fp32 and int8. `cifar10-reduced` and `tiny-reduced` reduce JPEGs.
    """
    path = work / name
    if path.is_dir():
        return path
    work.mkdir(parents=True, exist_ok=True)
    if name == "null":
        write_null_bundle(path)
    elif name in ("cifar10", "cifar10-reduced"):
        _export(_scaled("lipsformer_cifar10", name, work), path)
    elif name == "unfolded":
        _export("lipsformer_cifar10", path, "--no-fold")
    elif name in ("tiny", "tiny-reduced"):
        checkpoint, photos = _random_tiny(work / "tiny.safetensors"), _mirrored(work / "photos")
        options = ["--precision", "fp32,int8", "--calibration", str(photos), *NO_GATE]
        _export(_scaled(str(checkpoint), name, work), path, *options)
    else:
        raise ValueError(name)
    return path


def _export(checkpoint: str, path: Path, *options: str) -> None:
    command = [sys.executable, "-m", "lipsformer", "export", checkpoint, "--output", str(path), *options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def _scaled(model: str, name: str, work: Path) -> str:
    """The checkpoint `model`; for the bundle NAME-reduced, a copy that reads reduced JPEGs."""
    import dataclasses

    from lipsformer import load_checkpoint, save_checkpoint

    if not name.endswith("-reduced"):
        return model
    checkpoint, path = load_checkpoint(model), work / f"{name}.safetensors"
    save_checkpoint(
        path,
        config=checkpoint.config,
        weights=checkpoint.model.state_dict(),
        classes=checkpoint.classes,
        preprocessing=dataclasses.replace(checkpoint.preprocessing, jpeg_scale="reduced"),
        metrics=checkpoint.metrics,
    )
    return str(path)


def _mirrored(folder: Path) -> Path:
    """The sample photos and their mirror images: int8 asks for more than there are."""
    folder.mkdir(exist_ok=True)
    for path in SAMPLES.glob("*.jpg"):
        with Image.open(path) as photo:
            photo.save(folder / path.name)
            ImageOps.mirror(photo).save(folder / f"mirrored-{path.name}")
    return folder


def _random_tiny(path: Path) -> Path:
    import torch

    from lipsformer import Preprocessing, create_model, save_checkpoint

    torch.manual_seed(0)
    model = create_model("lipsformer_swin_tiny")
    save_checkpoint(
        path,
        config=model.config,
        weights=model.state_dict(),
        classes=tuple(f"class {index}" for index in range(model.config.num_classes)),
        preprocessing=Preprocessing(image_size=model.config.image_size),
        metrics={},
    )
    return path
