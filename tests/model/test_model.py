"""What both forms share: size and cost, independence of the batch, norms, stochastic depth, spectral norms."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from lipsformer.model.blocks import Block
from lipsformer.model.config import ModelConfig
from lipsformer.model.factory import build_model, create_model
from lipsformer.model.flops import summarize
from lipsformer.model.lipschitz.spectral import spectral_norm
from lipsformer.model.norm import CenterNorm
from lipsformer.model.residual import drop_path_mask
from tests.support.models.small_models import CSWIN, PLAIN_CSWIN, PLAIN_SWIN, SWIN, random_images, scrambled

FORMS = {"swin": SWIN, "cswin": CSWIN, "plain swin": PLAIN_SWIN, "plain cswin": PLAIN_CSWIN}
each_form = pytest.mark.parametrize("config", FORMS.values(), ids=FORMS)


@pytest.mark.parametrize(
    ("name", "parameters", "multiply_adds"),
    [
        ("lipsformer_swin_tiny", 30_908_578, 4.978e9),
        ("lipsformer_swin_small", 54_479_794, 9.663e9),
        ("lipsformer_swin_base", 96_011_168, 16.969e9),
        ("swin_tiny", 28_288_354, 4.49e9),
        ("cswin_tiny", 22_320_552, 4.324e9),
        ("cswin_small", 34_643_304, 6.801e9),
        ("cswin_base", 77_382_184, 14.955e9),
    ],
)
def test_size_and_cost(name: str, parameters: int, multiply_adds: float) -> None:
    summary = summarize(name)
    assert summary.parameters == parameters
    assert summary.multiply_adds == pytest.approx(multiply_adds, rel=0.001)
    assert summary.image_size == 224


def test_lipsformer_tiny_has_the_papers_size_and_cost() -> None:
    summary = summarize("lipsformer_cswin_tiny")
    assert summary.parameters == pytest.approx(24.33e6, rel=0.005)
    assert summary.multiply_adds == pytest.approx(4.72e9, rel=0.005)


def test_swin_nano_is_between_three_and_five_million_parameters() -> None:
    assert 3e6 < summarize("lipsformer_swin_nano").parameters < 5e6


@pytest.mark.parametrize("name", ["lipsformer_swin_nano", "lipsformer_cswin_nano", "swin_nano", "cswin_nano"])
def test_nano_starts_with_finite_outputs_and_gradients(name: str) -> None:
    torch.manual_seed(0)
    model = create_model(name, num_classes=5)
    size = model.config.image_size
    logits = model(torch.cat([torch.zeros(1, 3, size, size), torch.randn(1, 3, size, size)]))
    assert logits.shape == (2, 5)
    assert logits.isfinite().all()
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@each_form
@torch.no_grad()
def test_an_images_logits_do_not_depend_on_its_batch(config: ModelConfig) -> None:
    model, images = scrambled(config), random_images(config, 5)
    alone = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(model(images), alone, rtol=1e-11, atol=1e-11)


@each_form
def test_bfloat16_autocast_gives_outputs_near_those_of_float32(config: ModelConfig) -> None:
    torch.manual_seed(0)
    model = build_model(config)
    images = random_images(config).float()
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(images)
        loss = logits.square().sum()
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    with torch.no_grad():
        exact = model(images)
    assert logits.isfinite().all()
    assert float((logits.detach() - exact).norm() / exact.norm()) < 0.05


def test_center_norm_is_linear_with_its_lipschitz_constant() -> None:
    torch.manual_seed(0)
    norm = CenterNorm(6).double()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, -3.0, 0.5, 2.0, 1.0, 1.0]))
        norm.bias.normal_()
    x, y = torch.randn(2, 5, 6, dtype=torch.float64)
    zero = norm(torch.zeros_like(x))
    torch.testing.assert_close(norm(2 * x - 3 * y) - zero, 2 * (norm(x) - zero) - 3 * (norm(y) - zero))
    matrix = torch.autograd.functional.jacobian(norm, x[0])
    centring = torch.eye(6, dtype=torch.float64) - 1 / 6
    torch.testing.assert_close(matrix, norm.weight.detach().diag() @ centring * (6 / 5))
    assert torch.linalg.matrix_norm(matrix, 2) <= 6 / 5 * 3.0
    torch.testing.assert_close(norm(x + 100.0), norm(x))


def test_stochastic_depth_keeps_the_expectation_at_linear_rates() -> None:
    draws = torch.rand(6, 2, 20_000, generator=torch.Generator().manual_seed(0))
    keep = drop_path_mask(draws, 0.5)
    for block, rate in enumerate([0.0, 0.1, 0.2, 0.3, 0.4, 0.5]):
        assert set(keep[block].unique().tolist()) <= {0.0, float(torch.tensor(1.0) / (1 - torch.tensor(rate)))}
        dropped = float((keep[block] == 0).float().mean())
        assert dropped == pytest.approx(rate, abs=5 * math.sqrt(0.25 / keep[block].numel()))
        assert float(keep[block].mean()) == pytest.approx(1.0, abs=0.05)


@each_form
def test_drawn_branches_are_left_out_for_their_image_alone(config: ModelConfig) -> None:
    model = scrambled(config.replace(drop_path=0.9)).train()
    images = random_images(config, 3)
    draws = torch.ones(model.drop_path_shape(3), dtype=torch.float64)
    kept = model(images, draws)
    draws[3:, :, 1] = 0.0  # the later half of the blocks, for the second image
    dropped = model(images, draws)
    assert torch.equal(kept[[0, 2]], dropped[[0, 2]])
    assert not torch.allclose(kept[1], dropped[1])
    torch.manual_seed(0)
    free = model(images)
    torch.manual_seed(0)
    assert torch.equal(free, model(images, torch.rand(model.drop_path_shape(3))))
    assert torch.equal(model.eval()(images), model(images, draws))


@each_form
@torch.no_grad()
def test_dropping_all_branches_leaves_only_the_norms(config: ModelConfig) -> None:
    block: Any = next(m for m in scrambled(config).modules() if isinstance(m, Block))
    x = torch.randn(3, 16, 16, 8, dtype=torch.float64)
    kept = x if config.norm_position == "pre" else block.norm2(block.norm1(x))
    assert torch.equal(block(x, torch.zeros(config.conv_branches + 2, 3)), kept)
    assert not torch.allclose(block(x), kept)


@each_form
def test_recomputed_activations_give_the_same_gradients(config: ModelConfig) -> None:
    model = scrambled(config.replace(drop_path=0.5)).train()
    images = random_images(config)
    draws = torch.rand(model.drop_path_shape(2), generator=torch.Generator().manual_seed(0))
    gradients = []
    for grad_checkpointing in (False, True):
        model.grad_checkpointing = grad_checkpointing
        model.zero_grad()
        model(images, draws).square().sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 40), (40, 1), (8, 8), (96, 96), (384, 96), (96, 384), (64, 49), (1000, 200)]
)
def test_spectral_norm_equals_the_svd(shape: tuple[int, int]) -> None:
    matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(shape[0]))
    assert spectral_norm(matrix) == pytest.approx(float(torch.linalg.matrix_norm(matrix.double(), 2)), rel=1e-5)


def test_spectral_norm_of_special_matrices() -> None:
    assert spectral_norm(torch.zeros(3, 4)) == 0.0
    assert spectral_norm(torch.eye(5) * 3) == pytest.approx(3.0)
    assert spectral_norm(torch.ones(10, 1) @ torch.ones(1, 7)) == pytest.approx(math.sqrt(70))
    assert spectral_norm(torch.eye(4) * 1e-30) == pytest.approx(1e-30)
