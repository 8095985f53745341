"""Every variant trains, comes back from its checkpoint bit for bit, and exports with parity, in its own width.

Small and base have few blocks here, with which small is tiny and left out: tests/export/test_folding.py has them all.
All but the nano models start without the division by spectral norms, which takes half of the time. Images are 64 pixels
wide where the variant's are larger, and windows cut so that each stage keeps its kind of window.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from lipsformer import Preprocessing, create_model, load_checkpoint, save_checkpoint
from lipsformer.export import ExportSettings, export_bundle
from lipsformer.model.blocks import LipsFormer
from lipsformer.model.variants import VARIANTS
from lipsformer.train import load_recipe
from lipsformer.train.optim.optimizers import build_optimizers
from tests.support.models.small_models import small_images

CLASSES = tuple(f"kind {number}" for number in range(14))


def train_one_step(model: LipsFormer) -> None:
    size = model.config.image_size
    loss = F.cross_entropy(model.train()(torch.randn(2, 3, size, size)), torch.tensor([0, 1]))
    loss.backward()  # type: ignore[no-untyped-call]
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:  # shifts are not learned
            continue
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name
    build_optimizers(model, load_recipe("default")).step()
    model.zero_grad(set_to_none=True)


def save(model: LipsFormer, path: Path) -> Path:
    save_checkpoint(
        path,
        config=model.config,
        weights=model.state_dict(),
        classes=CLASSES,
        preprocessing=Preprocessing(image_size=model.config.image_size),
        metrics={},
    )
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in VARIANTS if not name.endswith("small")])
def test_trains_one_step_comes_back_bit_for_bit_and_exports_with_parity(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    init = VARIANTS[name].init if name.endswith("nano") else "xavier"
    depths = (1, 2, 1, 1) if name.endswith("base") else VARIANTS[name].depths  # every other block of Swin is shifted
    model = create_model(name, len(CLASSES), **small_images(name), init=init, depths=depths)
    assert model.config.embed_dim == VARIANTS[name].embed_dim
    train_one_step(model)
    checkpoint = save(model, tmp_path / "model.safetensors")
    loaded = load_checkpoint(checkpoint)
    assert loaded.config == model.config
    written, read = model.state_dict(), loaded.model.state_dict()
    assert written.keys() == read.keys()
    assert all(torch.equal(tensor, read[key]) for key, tensor in written.items())
    size = model.config.image_size
    image = torch.randn(1, 3, size, size)
    with torch.no_grad():
        assert torch.equal(model.eval()(image), loaded.model(image))

    manifest = export_bundle(checkpoint, tmp_path / "bundle", ExportSettings(max_batch=4))
    parity = manifest.graph().parity
    assert parity is not None
    assert parity["passed"]
    assert [row["batch"] for row in parity["batches"]] == [1, 3, 4]
    assert max(row["relative_l2"] for row in parity["batches"]) <= 1e-5
