"""Training computes by other operations than evaluation; outputs and gradients are equal, in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lipsformer.model import cpu_ops
from lipsformer.model.attention import l2_normalize
from lipsformer.model.config import ModelConfig
from lipsformer.model.factory import build_model
from lipsformer.model.norm import CenterNorm
from lipsformer.model.residual import ConvexResidual, PlainResidual, ResidualScale, drop_path_mask
from tests.support.models.small_models import (
    CERTIFIED,
    CSWIN,
    EQUAL,
    PLAIN_CSWIN,
    PLAIN_SWIN,
    SWIN,
    random_images,
    scrambled,
)


def random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def gradients(network: Callable[[Tensor], Tensor], model: nn.Module, image: Tensor) -> dict[str, Tensor]:
    """The gradients of the model's weights, of a sum in which every logit has another weight; and the logits."""
    model.zero_grad()
    logits = network(image)
    (logits * torch.linspace(0.5, 1.5, logits.numel(), dtype=logits.dtype).view_as(logits)).sum().backward()
    grads = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    return {"logits": logits.detach()} | grads


@pytest.mark.parametrize(
    "config", [SWIN, CSWIN, CSWIN.replace(value_norm=True), PLAIN_SWIN, PLAIN_CSWIN, CERTIFIED], ids=str
)
def test_training_computes_what_evaluation_computes(config: ModelConfig) -> None:
    model = scrambled(config)
    image = random_images(config)
    plain, fast = gradients(model.eval(), model, image), gradients(model.train(), model, image)
    assert plain.keys() == fast.keys()
    assert len(plain) == 1 + len(list(model.parameters()))
    for name, expected in plain.items():
        error = (fast[name] - expected).norm() / plain[name].norm().clamp(min=1e-6)
        assert error < EQUAL, name


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # the compiler imports what PyTorch itself deprecates
def test_a_compiled_block_computes_the_same() -> None:
    """Without the CPU's vector instructions: most of a minute would go into the headers for them."""
    from torch._inductor import config

    block = scrambled(SWIN).layers[0].blocks[0].train()
    x = random(2, *[SWIN.resolution(0)] * 2, SWIN.channels(0))
    outputs, grads = [], []
    for compiled in (False, True):
        if compiled:
            block.compile()
        block.zero_grad()
        with config.patch({"cpp.vec_isa_ok": False}):
            out = block(x)
            (out * torch.linspace(0.5, 1.5, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
        outputs.append(out.detach())
        grads.append([parameter.grad.clone() for parameter in block.parameters()])
    torch.testing.assert_close(*outputs)
    torch.testing.assert_close(*grads)


def test_center_norm_has_the_gradients_of_its_formula() -> None:
    torch.manual_seed(0)
    x, weight, bias = random(2, 3, 5), random(5), random(5)
    expected = (x - x.mean(-1, keepdim=True)) * weight + bias
    torch.testing.assert_close(cpu_ops.center_affine(x, weight, bias), expected)
    assert torch.autograd.gradcheck(cpu_ops.center_affine, (x, weight, bias))
    assert torch.autograd.gradcheck(cpu_ops.center_affine, (x[0, 0].detach().requires_grad_(), weight, bias))


def test_normalize_has_the_gradients_of_its_formula() -> None:
    torch.manual_seed(0)
    x = random(2, 3, 4)
    for epsilon in (1e-24, 0.5):
        assert torch.equal(cpu_ops.l2_normalize(x, epsilon), l2_normalize(x, epsilon))
        torch.testing.assert_close(cpu_ops.l2_normalize(x, epsilon, 10.0), 10.0 * l2_normalize(x, epsilon))
        assert torch.autograd.gradcheck(lambda x, epsilon=epsilon: cpu_ops.l2_normalize(x, epsilon, 10.0), x)


def test_scaled_branches_have_the_gradients_of_their_formula() -> None:
    torch.manual_seed(0)
    x, branch = random(2, 3, 4), random(2, 3, 4)
    for scale in (random(4), random(2, 1, 4)):
        torch.testing.assert_close(cpu_ops.add_scaled(x, branch, scale), x + branch * scale)
        assert torch.autograd.gradcheck(cpu_ops.add_scaled, (x, branch, scale))


def test_replaced_images_have_the_gradients_of_their_formula() -> None:
    torch.manual_seed(0)
    x, images = random(4, 3), torch.tensor([0, 2])

    def replaced(x: Tensor) -> Tensor:
        return cpu_ops.replace_images(x, images, lambda part: part.sin() * part.mean())

    torch.testing.assert_close(replaced(x), x.index_copy(0, images, x[images].sin() * x[images].mean()))
    assert torch.autograd.gradcheck(replaced, x)


@pytest.mark.parametrize("config", [SWIN, CSWIN, PLAIN_SWIN, PLAIN_CSWIN, CERTIFIED], ids=str)
@pytest.mark.parametrize("dropped", ["some", "all"])
def test_dropped_branches_are_not_computed_and_gradients_stay(
    config: ModelConfig, dropped: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = scrambled(config.replace(drop_path=0.9)).train()
    image = random_images(config, 4)
    draws = torch.rand(model.drop_path_shape(4), generator=torch.Generator().manual_seed(0))
    draws = draws if dropped == "some" else torch.zeros_like(draws)
    images: list[int] = []
    for block in (block for layer in model.layers for block in layer.blocks):
        block.mlp.register_forward_hook(lambda _, inputs, out: images.append(len(out)))

    def run() -> dict[str, Tensor]:
        return gradients(lambda x: model(x, draws), model, image)

    fast, computed = run(), list(images)
    images.clear()
    monkeypatch.setattr(cpu_ops, "kept_images", lambda keep: None)
    plain = run()
    assert set(images) == {4}
    kept = drop_path_mask(draws, 0.9)[:, -1].count_nonzero(dim=-1).clamp(min=1)
    assert computed == kept.tolist()
    assert 1 in computed
    assert plain.keys() == fast.keys()
    assert len(fast) == 1 + len(list(model.parameters()))  # also of the weights whose branch was dropped for all
    for name, expected in plain.items():
        torch.testing.assert_close(fast[name], expected, rtol=1e-10, atol=1e-10 * float(expected.abs().max()))


def test_maps_stay_in_bfloat16_under_autocast() -> None:
    torch.manual_seed(0)
    model = build_model(SWIN.replace(drop_path=0.5)).train()
    image = random_images(SWIN, 4).float()
    draws = torch.rand(model.drop_path_shape(4))
    exact = gradients(lambda x: model(x, draws), model, image)
    maps: list[torch.dtype] = []
    for block in (block for layer in model.layers for block in layer.blocks):
        block.register_forward_hook(lambda _, inputs, out: maps.append(out.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(lambda x: model(x, draws), model, image)
    assert set(maps) == {torch.bfloat16}
    for name, expected in exact.items():
        assert found[name].dtype == (torch.bfloat16 if name == "logits" else torch.float32)
        error = (found[name].float() - expected).norm() / expected.norm().clamp(min=1e-3)
        assert error < 0.1, name


def test_convex_sum_has_the_gradients_of_its_formula() -> None:
    torch.manual_seed(0)
    x, branch, alpha = random(2, 3, 4), random(2, 3, 4), random(1)
    torch.testing.assert_close(cpu_ops.convex_sum(x, branch, alpha), x + (branch - x) * alpha)
    assert torch.autograd.gradcheck(cpu_ops.convex_sum, (x, branch, alpha))


def test_frozen_norms_pass_the_gradient_on() -> None:
    norm = CenterNorm(4).requires_grad_(False).train()
    x = torch.randn(2, 4, requires_grad=True)
    norm(x).sum().backward()
    assert x.grad is not None
    assert norm.weight.grad is None


@pytest.mark.parametrize("layer", [ResidualScale(3, 0.5), PlainResidual(), ConvexResidual()])
def test_stochastic_depth_weighs_the_branch_of_each_image(layer: nn.Module) -> None:
    x, branch, keep = torch.randn(2, 4, 4, 3), torch.randn(2, 4, 4, 3), torch.tensor([0.0, 2.0]).reshape(2, 1, 1, 1)
    torch.testing.assert_close(layer(x, branch, keep), x + (layer(x, branch) - x) * keep)
