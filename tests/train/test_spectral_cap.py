"""The spectral cap holds every operator, the margin loss is what it says, and both resume exactly."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from lipsformer import load_checkpoint
from lipsformer.model.blocks import LipsFormer
from lipsformer.model.config import ModelConfig
from lipsformer.model.factory import build_model
from lipsformer.model.lipschitz.bounds import bound_features
from lipsformer.system.errors import InputError, StoppedError
from lipsformer.train import load_recipe, loop
from lipsformer.train.margin import add_margin, margin_at, running_bound
from lipsformer.train.metrics import StepMetrics
from lipsformer.train.optim.optimizers import build_optimizers
from lipsformer.train.optim.spectral_cap import SpectralCap, orthogonalize
from lipsformer.train.run import open_run
from lipsformer.train.signals import StopRequest
from tests.support.models.small_models import CERTIFIED, CSWIN, random_images
from tests.support.tiny_training import TINY as TINY_MODEL
from tests.support.tiny_training import assert_same, one_thread, train_tiny

STRIPES = CSWIN.replace(
    image_size=32, patch_size=4, embed_dim=8, num_heads=(2, 2), split_sizes=(2, 2), residual="convex",
    activation="maxmin",
    pooling="flat", epsilon=1.0, temperature=0.25, learned_scales=True, conv_kernel=3, depths=(1, 1),
)  # fmt: skip
RECIPE = {"spectral_cap": 1.0, "optimizer": "muon", "learning_rate": 0.05, "weight_decay": 0.0}
TINY = (
    "model.name=lipsformer_certified_nano", "model.depths=[1]", "model.num_heads=[2]", "spectral_cap=1.0",
    "loss=margin", "margin=0.2", "learning_rate=0.01", "ema_decay=0.0",
)  # fmt: skip


def capped(config: ModelConfig, cap: float = 1.0) -> LipsFormer:
    """A network with large random weights, put below the cap."""
    torch.manual_seed(0)
    model = build_model(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=3.0)
    SpectralCap(model, cap).start()
    return model


def bound(model: LipsFormer) -> float:
    found = bound_features(model).log10
    assert found is not None
    return 10**found


@pytest.mark.parametrize("config", [CERTIFIED, CERTIFIED.replace(shifted_windows=True, window_size=2), STRIPES])
@pytest.mark.parametrize("cap", [0.7, 1.0])
def test_the_bound_is_below_the_cap_whatever_the_weights_were(config: ModelConfig, cap: float) -> None:
    model = capped(config, cap)
    before = bound(model)
    assert before <= cap * (1 + 1e-5)
    with torch.no_grad():
        model.patch_embed.proj.weight *= 1.1  # an edit is seen by the bound
    assert bound(model) > before * 1.09


def test_steps_at_a_huge_rate_stay_below_the_cap() -> None:
    model = capped(CERTIFIED).train()
    optimizers = build_optimizers(model, load_recipe("default", RECIPE))
    for step in range(3):
        optimizers.zero_grad()
        loss = F.cross_entropy(model(random_images(CERTIFIED).float() + step), torch.tensor([0, 1]))
        loss.backward()  # type: ignore[no-untyped-call]
        optimizers.step()
        assert bound(model) <= 1 + 1e-5
    without = build_optimizers(model, load_recipe("default", {**RECIPE, "spectral_cap": 0.0}))
    without.step()
    assert bound(model) > 1.05  # the same step without the cap is above it


@pytest.mark.parametrize("size", [0.0, 0.3, 1.0, 1.7, 10.0, 1e6])
def test_no_singular_value_is_above_one_after_the_step(size: float) -> None:
    matrices = torch.randn(4, 5, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * size
    for x in (matrices, matrices.mT):
        held = orthogonalize(x)
        assert held.shape == x.shape
        assert float(torch.linalg.svdvals(held).max()) <= 1 + 1e-12
    assert orthogonalize(torch.eye(3).expand(2, 3, 3)).equal(torch.eye(3).expand(2, 3, 3))


def test_frozen_weights_are_left_alone() -> None:
    model = build_model(CERTIFIED)
    model.patch_embed.requires_grad_(False)
    before = model.patch_embed.proj.weight.clone()
    SpectralCap(model, 0.1).start()
    assert model.patch_embed.proj.weight.equal(before)


def test_layer_norm_cannot_be_capped() -> None:
    with pytest.raises(InputError, match=r"LayerNorm cannot be held below a cap; set model.norm to 'center'"):
        SpectralCap(build_model(CERTIFIED.replace(norm="layer")), 1.0)


def test_the_radius_of_the_loss_grows_in_a_straight_line() -> None:
    assert [margin_at(step, 100, 0.2, 0.5) for step in (0, 25, 50, 99)] == [0.0, 0.1, 0.2, 0.2]
    assert margin_at(0, 100, 0.2, 0.0) == 0.2


def test_the_margin_is_what_a_move_of_the_features_can_do() -> None:
    """No move of the features by `reach` gives a class more than the loss adds, and the worst one does."""
    generator = torch.Generator().manual_seed(0)
    head = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    features = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    labels, reach = torch.tensor([1, 0, 3]), 0.7
    logits = features @ head.T
    found = add_margin(logits, labels, head, reach)
    assert found[torch.arange(3), labels].equal(logits[torch.arange(3), labels])
    for image, label in enumerate(labels.tolist()):
        for other in set(range(4)) - {label}:
            direction = head[other] - head[label]
            moved = (features[image] + reach * direction / direction.norm()) @ head.T
            lead = float(found[image, other] - found[image, label])
            assert lead == pytest.approx(float(moved[other] - moved[label]))


def test_a_running_bound_includes_the_normalization() -> None:
    model = capped(CERTIFIED)
    assert running_bound(model, (0.25,) * 3) == pytest.approx(4 * bound(model), rel=1e-6)
    with pytest.raises(InputError, match=r"needs a network with a Lipschitz bound: .*not Lipschitz"):
        running_bound(build_model(CERTIFIED.replace(value_norm=False)), (0.25,) * 3)


@pytest.mark.slow
def test_a_capped_training_ends_below_the_cap_and_resumes_exactly(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_tiny(photos, tmp_path / "whole", *TINY, epochs=2)
    assert bound(load_checkpoint(tmp_path / "whole" / "last.safetensors").model) <= 1 + 1e-5
    take_step, steps = loop.take_step, itertools.count()

    def interrupted(*args: Any, **options: Any) -> StepMetrics:
        if next(steps) == 4:  # between two computations of the bound, which the state has to keep
            raise KeyboardInterrupt
        return take_step(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "take_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_tiny(photos, tmp_path / "cut", *TINY, "save_every=1", epochs=2)
    train_tiny(photos, tmp_path / "cut", *TINY, epochs=2)
    assert_same(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.slow
def test_two_processes_end_with_the_same_weights_and_resume_exactly(photos: Path, tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        ports = [server.getsockname()[1] for server in servers]
    fresh = multiprocessing.get_context("spawn")
    processes = [fresh.Process(target=train_of_two, args=(rank, ports, photos, tmp_path)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
        process.kill()
        assert process.exitcode == 0
    wanted = load_file(tmp_path / "whole-0.safetensors")
    for name in ("whole-1", "cut-0", "cut-1"):
        found = load_file(tmp_path / f"{name}.safetensors")
        assert [key for key in wanted if not wanted[key].equal(found[key])] == []


def train_of_two(rank: int, ports: list[int], photos: Path, folder: Path) -> None:
    """One of two processes: trains at once, then again but stopped after a step and resumed."""
    for port, name, stops in zip(ports, ("whole", "cut", "cut"), (False, True, False), strict=True):
        os.environ.update(
            MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE="2", RANK=str(rank), LOCAL_RANK=str(rank)
        )
        stop, overrides = StopRequest(), (*TINY_MODEL, *TINY, "batch_size=4")
        stop.signal = 15 if stops else 0
        with (
            one_thread(),
            open_run(photos, output=folder / name, resume=True, device="cpu", epochs=2, overrides=overrides) as run,
        ):
            try:
                run.train(stop)
            except StoppedError:
                continue
            save_file(run.state.model.state_dict(), folder / f"{name}-{rank}.safetensors")
