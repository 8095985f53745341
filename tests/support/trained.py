"""A small model with everything made from it, shared by the tests of export, command line and serving."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch

from lipsformer import Preprocessing, create_model, save_checkpoint
from lipsformer.images.samples import SAMPLES


@dataclasses.dataclass(frozen=True)
class Trained:
    """Paths of a checkpoint, its bundle, and the labeled photos (one of each class) it can be tried on."""

    checkpoint: Path
    bundle: Path
    data: Path
    classes: tuple[str, ...]


def write_checkpoint(path: Path) -> tuple[str, ...]:
    """Writes a small model with a class for each sample photo; returns the classes.

    Not really trained: its parameters are pushed far from their initial values, so that none is without effect.
    """
    classes = tuple(photo.stem for photo in sorted(SAMPLES.glob("*.jpg")))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = create_model(
            "lipsformer_swin_nano", len(classes), 32, embed_dim=16, depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 4)
        )
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
            model.head.weight.mul_(3)  # so that the images get clearly different answers
    save_checkpoint(
        path,
        config=model.config,
        weights=model.state_dict(),
        classes=classes,
        preprocessing=Preprocessing(image_size=32),
        metrics={},
    )
    return classes


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The small model's checkpoint, its bundle, and one photo of each class."""
    from lipsformer.export import export_bundle

    root = tmp_path_factory.mktemp("trained")
    for photo in SAMPLES.glob("*.jpg"):
        (root / "data" / photo.stem).mkdir(parents=True)
        shutil.copy(photo, root / "data" / photo.stem)
    checkpoint = root / "model.safetensors"
    classes = write_checkpoint(checkpoint)
    export_bundle(checkpoint, root / "bundle")
    return Trained(checkpoint=checkpoint, bundle=root / "bundle", data=root / "data", classes=classes)


@pytest.fixture(scope="session")
def explained(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The same with a bundle that has heat maps."""
    from lipsformer.export import ExportSettings, export_bundle

    bundle = tmp_path_factory.mktemp("explained") / "bundle"
    export_bundle(trained.checkpoint, bundle, ExportSettings(explain=True, parity_images=14, max_batch=4))
    return dataclasses.replace(trained, bundle=bundle)
