"""The layers that do not stretch: MaxMin, convex residuals, orthogonal initial weights."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lipsformer.model.activation import MaxMin
from lipsformer.model.blocks import Block, DepthwiseConv2d, ShiftConv2d
from lipsformer.model.factory import build_model
from lipsformer.model.init_weights import init_weights
from lipsformer.model.lipschitz.bounds import bound_features
from lipsformer.model.residual import ConvexResidual
from lipsformer.system.errors import InputError
from lipsformer.train import load_recipe
from lipsformer.train.optim.optimizers import build_optimizers
from tests.support.models.small_models import CERTIFIED, random_images


def test_maxmin_sorts_pairs_of_channels() -> None:
    x = torch.tensor([[1.0, 5.0, 3.0, 2.0]])
    assert MaxMin()(x).tolist() == [[3.0, 5.0, 1.0, 2.0]]
    assert MaxMin()(x.requires_grad_()).tolist() == [[3.0, 5.0, 1.0, 2.0]]


def test_maxmin_has_the_gradient_of_its_formula_and_keeps_its_length() -> None:
    x = torch.randn(3, 4, 6, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(3, 4, 6, dtype=torch.float64)
    (own,) = torch.autograd.grad((MaxMin()(x) * weights).sum(), x)
    first, second = x.chunk(2, dim=-1)
    formula = torch.cat([torch.maximum(first, second), torch.minimum(first, second)], dim=-1)
    (wanted,) = torch.autograd.grad((formula * weights).sum(), x)
    torch.testing.assert_close(own, wanted)
    torch.testing.assert_close(own.norm(), weights.norm())
    assert torch.autograd.gradgradcheck(MaxMin(), x)


def test_a_convex_residual_is_a_mean() -> None:
    residual, x, branch = ConvexResidual(), torch.randn(2, 3), torch.randn(2, 3)
    for logit, alpha in ((-1e4, 0.0), (0.0, 0.5), (1e4, 1.0)):
        nn.init.constant_(residual.logit, logit)
        torch.testing.assert_close(residual(x, branch), (1 - alpha) * x + alpha * branch)


def test_one_alpha_per_channel_would_stretch() -> None:
    """The example of `ConvexResidual`: why it has one alpha for all channels."""
    x, alpha = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    branch = x.flip(0)  # as long as x
    assert float(((1 - alpha) * x + alpha * branch).norm()) == pytest.approx(2**0.5)
    assert float(ConvexResidual()(x, branch).norm().detach()) <= 1


def test_orthogonal_weights_have_singular_values_of_one() -> None:
    torch.manual_seed(0)
    model = build_model(CERTIFIED)
    init_weights(model, CERTIFIED.init)
    for module in model.modules():
        if isinstance(module, DepthwiseConv2d):
            assert (module.weight.flatten(1).sort().values[:, :-1] == 0).all()
            assert (module.weight.amax(dim=(1, 2, 3)) == 1).all()
        elif isinstance(module, nn.Linear | nn.Conv2d):
            values = torch.linalg.svdvals(module.weight.detach().flatten(1))
            torch.testing.assert_close(values, torch.ones_like(values))


@pytest.mark.parametrize("scheme", ["spectral", "xavier", "orthogonal", "trunc_normal"])
@torch.no_grad()
def test_a_shift_moves_each_channel_and_shortens_only_what_leaves_the_map(scheme: str) -> None:
    torch.manual_seed(0)
    convolution, x = ShiftConv2d(18, 3).eval(), torch.randn(1, 18, 5, 5)
    init_weights(convolution, scheme)
    nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
    out = convolution(x)
    steps = convolution.weight.flatten(1).argmax(dim=1)
    assert len(steps.unique()) > 5
    for channel, step in enumerate(steps.tolist()):
        down, right = 1 - step // 3, 1 - step % 3
        moved = F.pad(x[0, channel], (1, 1, 1, 1)).roll((down, right), (0, 1))[1:-1, 1:-1]
        torch.testing.assert_close(out[0, channel], moved)


def test_training_moves_no_shift_and_keeps_the_bound() -> None:
    torch.manual_seed(0)
    config = CERTIFIED.replace(shift_conv=True)
    model = build_model(config).train()
    init_weights(model, config.init)
    recipe = load_recipe("cifar10_certified", {"learning_rate": 0.1})
    optimizers = build_optimizers(model, recipe)
    shifts = {name: tensor.clone() for name, tensor in model.state_dict().items() if ".dwconv_layers." in name}
    model(random_images(config).float()).square().sum().backward()
    optimizers.step()
    bound = bound_features(model.eval()).log10
    assert bound is not None
    assert 10**bound <= 1 + 1e-5
    for name, before in shifts.items():
        assert torch.equal(model.state_dict()[name], before) == name.endswith(".weight"), name


def test_fixed_shares_stay_where_they_start() -> None:
    torch.manual_seed(0)
    config = CERTIFIED.replace(learned_shares=False)
    model = build_model(config).train()
    optimizers = build_optimizers(model, load_recipe("cifar10_certified", {"learning_rate": 0.1}))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model(random_images(config).float()).square().sum().backward()
    optimizers.step()
    for name, tensor in model.state_dict().items():
        if "alpha" in name or "scale_layers" in name:
            assert torch.equal(tensor, before[name]), name
    assert not torch.equal(model.head.weight, before["head.weight"])


def test_branches_start_with_the_shares_of_the_configuration() -> None:
    for module in build_model(CERTIFIED.replace(initial_shares=(0.998, 0.05, 0.75))).modules():
        if isinstance(module, Block):
            parts = (*module.scale_layers, module.alpha1, module.alpha2)
            shares = [float(part.alpha.detach()) for part in parts if isinstance(part, ConvexResidual)]
            assert shares == pytest.approx([0.998, 0.998, 0.05, 0.75], rel=1e-6)


def test_a_flat_head_reads_every_token() -> None:
    model = build_model(CERTIFIED).eval()
    features = model.forward_features(random_images(CERTIFIED).float())
    assert features.shape == (2, CERTIFIED.features) == (2, 4 * 4 * 16)
    assert model.head.in_features == CERTIFIED.features


def test_timm_has_no_flat_head() -> None:
    pytest.importorskip("timm")
    from lipsformer.integrations.timm import TimmLipsFormerSwin, registry

    assert "lipsformer_certified_nano" not in registry.NAMES
    with pytest.raises(InputError, match="timm pools by the mean"):
        TimmLipsFormerSwin(CERTIFIED, num_classes=5, drop_rate=0.0, global_pool="avg")
