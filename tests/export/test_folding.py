"""Folding is exact, in float64 to 1e-12 and in float32, for both forms and every component; wrong folds are seen."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from lipsformer import Checkpoint, Preprocessing
from lipsformer.export.folding.affine import Affine
from lipsformer.export.folding.attention import NEGLIGIBLE, FoldedWindows, Unit
from lipsformer.export.folding.network import FoldedLipsFormer, TwoNorms, fold
from lipsformer.export.graph import build_graph
from lipsformer.model.attention import l2_normalize
from lipsformer.model.blocks import LipsFormer
from lipsformer.model.config import ModelConfig
from lipsformer.model.factory import build_model
from lipsformer.model.norm import CenterNorm
from lipsformer.model.variants import VARIANTS
from tests.support.models.small_models import CERTIFIED, CSWIN, PLAIN_CSWIN, PLAIN_SWIN, SWIN, scrambled, small_images

EXACT = 1e-12
SEEN = 1e-6
FORMS = {"swin": SWIN, "cswin": CSWIN, "plain swin": PLAIN_SWIN, "plain cswin": PLAIN_CSWIN, "certified": CERTIFIED}


def pixels_for(config: ModelConfig, count: int = 3) -> Tensor:
    shape = (count, config.image_size, config.image_size, 3)
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(2), dtype=torch.uint8)


def preprocessing_for(config: ModelConfig) -> Preprocessing:
    return Preprocessing(image_size=config.image_size)


@torch.no_grad()
def trained_answer(model: LipsFormer, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """The network's logits and features, its input normalized in its own precision."""
    spec, dtype = preprocessing_for(model.config), next(model.parameters()).dtype
    mean, std = torch.tensor(spec.mean, dtype=torch.float64), torch.tensor(spec.std, dtype=torch.float64)
    image = ((pixels.double() / 255 - mean) / std).permute(0, 3, 1, 2)
    return model(image.to(dtype)), model.forward_features(image.to(dtype))


@torch.no_grad()
def error(folded: nn.Module, model: LipsFormer) -> float:
    """The worst relative error of an image's logits or features."""
    pixels = pixels_for(model.config)
    pairs = zip(folded(pixels), trained_answer(model, pixels), strict=True)
    return max(
        float(((found.double() - wanted.double()).norm(dim=1) / wanted.double().norm(dim=1)).max())
        for found, wanted in pairs
    )


def folded_of(model: LipsFormer) -> FoldedLipsFormer:
    return fold(model, preprocessing_for(model.config))


@pytest.mark.parametrize("form", FORMS)
def test_folding_is_exact(form: str) -> None:
    model = scrambled(FORMS[form])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert error(folded_of(model), model) < EXACT
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("form", FORMS)
def test_folding_is_right_in_float32(form: str) -> None:
    model = scrambled(FORMS[form])
    assert error(folded_of(model).float(), model) < 1e-5


@pytest.mark.parametrize("form", FORMS)
def test_the_network_as_it_was_trained_is_exported_too(form: str) -> None:
    model = scrambled(FORMS[form]).float()
    checkpoint = Checkpoint(
        model=model,
        config=model.config,
        classes=tuple("abcde"),
        preprocessing=preprocessing_for(model.config),
        metrics={},
    )
    graph = build_graph(checkpoint, max_batch=3, fold=False).SerializeToString()
    pixels = pixels_for(model.config).numpy()
    found = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"]).run(None, {"pixels": pixels})
    for outputs, wanted in zip(found, trained_answer(model, torch.from_numpy(pixels)), strict=True):
        assert np.linalg.norm(outputs - wanted.numpy()) < 1e-5 * np.linalg.norm(wanted.numpy())


CHOICES = (
    ("swin", "cswin"),
    ("center", "layer"),
    ("post", "pre"),
    ("cosine", "dot"),
    ("weighted", "plain"),
    (False, True),
    (False, True),
)
ABLATIONS = [choice for choice in itertools.product(*CHOICES) if choice[3] == "cosine" or not (choice[5] or choice[6])]


@pytest.mark.parametrize(("form", "norm", "position", "attention", "residual", "learned", "value_norm"), ABLATIONS)
def test_every_component_folds(
    form: str, norm: str, position: str, attention: str, residual: str, learned: bool, value_norm: bool
) -> None:
    config = FORMS[form].replace(
        norm=norm,
        norm_position=position,
        attention=attention,
        residual=residual,
        learned_scales=learned,
        value_norm=value_norm,
        value_scale=1.5,
        epsilon=1e-3,  # large enough to be seen if it were left out
    )
    model = scrambled(config)
    assert error(folded_of(model), model) < EXACT


@pytest.mark.parametrize("norm", ["center", "layer"])
@pytest.mark.parametrize("position", ["post", "pre"])
@pytest.mark.parametrize("form", [CERTIFIED, CSWIN.replace(residual="convex", activation="maxmin", pooling="flat")])
def test_convex_residuals_maxmin_and_a_flat_head_fold_with_every_norm(
    form: ModelConfig, position: str, norm: str
) -> None:
    model = scrambled(form.replace(norm=norm, norm_position=position))
    assert error(folded_of(model), model) < EXACT


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_folds(name: str) -> None:
    """At its own width, with perturbed parameters; in float32, as it is exported.

    A stage's first, inner and last block fold differently; further inner ones repeat.
    """
    torch.manual_seed(0)
    depths = tuple(min(depth, 3) for depth in VARIANTS[name].depths)
    config = VARIANTS[name].replace(num_classes=10, depths=depths, **small_images(name))
    model = build_model(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
            parameter.copy_(torch.randn_like(parameter) * (fan_in**-0.5 if parameter.ndim > 1 else 0.3))
    model = model.double()
    folded = folded_of(model)
    pixels = pixels_for(config, count=1)
    with torch.no_grad():
        wanted, _ = trained_answer(model, pixels)
        exactly, roughly = folded(pixels)[0], folded.float()(pixels)[0].double()
    assert float((exactly - wanted).norm() / wanted.norm()) < EXACT
    assert float((roughly - wanted).norm() / wanted.norm()) < 1e-5


def test_half_precision_keeps_stem_and_head_in_float32() -> None:
    model = scrambled(CSWIN)
    folded = folded_of(model)
    folded.half_body()
    kept = {name.split(".")[0] for name, tensor in folded.state_dict().items() if tensor.dtype == torch.float32}
    assert kept == {"mean", "stem", "norm", "head"}
    assert [output.dtype for output in folded(pixels_for(CSWIN))] == [torch.float32, torch.float32]


def without_factor(folded: FoldedLipsFormer) -> None:
    """CenterNorm's D / (D - 1) forgotten on the trunk."""
    folded.last.trunk.get_buffer("gain").mul_((CSWIN.channels(3) - 1) / CSWIN.channels(3))


def without_correction(folded: FoldedLipsFormer) -> None:
    """The trunk scaled, and the rank-2 correction left out."""
    folded.last.trunk.get_buffer("spread")[:2] = 0


def with_plain_epsilon(folded: FoldedLipsFormer) -> None:
    """Normalization that guards against zero only, as torch.nn.functional.normalize does."""
    for module in folded.modules():
        if hasattr(module, "epsilon"):
            module.epsilon = 0.0


def with_unpadded_mean(folded: FoldedLipsFormer) -> None:
    """The pixel mean folded into the bias of a stem whose zero padding means the mean."""
    conv, mean = folded.stem.conv, folded.get_buffer("mean")
    assert conv.bias is not None
    conv.bias.sub_(conv.weight.sum(dim=(2, 3)) @ mean)
    folded.mean = None


def without_value_bias(folded: FoldedLipsFormer) -> None:
    """The values' bias dropped, though a convolution sees them too."""
    for module in folded.modules():
        if isinstance(module, FoldedWindows) and isinstance(module.value, nn.Linear):
            module.value.bias = None


@pytest.mark.parametrize(
    "spoil", [without_factor, without_correction, with_plain_epsilon, with_unpadded_mean, without_value_bias]
)
def test_a_wrong_fold_is_seen(spoil: Callable[[FoldedLipsFormer], None]) -> None:
    model = scrambled(CSWIN.replace(epsilon=1.0))
    folded = folded_of(model)
    with torch.no_grad():
        spoil(folded)
    assert error(folded, model) > SEEN


@pytest.mark.parametrize("epsilon", [1e-24, NEGLIGIBLE, 2 * NEGLIGIBLE, 1e-8, 1e-2])
def test_vectors_of_every_length_are_normalized(epsilon: float) -> None:
    """Zeros stay zeros; only what float32's rounding hides may differ from the formula."""
    directions = torch.randn(12, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    x = directions / directions.norm(dim=1, keepdim=True) * torch.logspace(-6, 4, 12, dtype=torch.float64)[:, None]
    unit = Unit(torch.full((1,), 10.0, dtype=torch.float64), epsilon)
    torch.testing.assert_close(unit(x), 10 * l2_normalize(x, epsilon), rtol=1e-8, atol=0)
    torch.testing.assert_close(unit.float()(x.float()).double(), 10 * l2_normalize(x, epsilon), rtol=1e-6, atol=1e-6)
    assert not unit(torch.zeros(2, 8)).any()


def test_the_official_order_of_a_merge_matters() -> None:
    model = scrambled(SWIN)
    folded = folded_of(model)
    reduction = next(module.reduction for module in folded.body if hasattr(module, "reduction"))
    with torch.no_grad():
        reduction.weight.copy_(reduction.weight.unflatten(1, (2, 2, -1)).transpose(1, 2).flatten(1))
    assert error(folded, model) > SEEN


def test_affine_maps_compose() -> None:
    torch.manual_seed(0)
    norm, layer = CenterNorm(6).double(), nn.Linear(6, 4, dtype=torch.float64)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(5, 6, dtype=torch.float64)
    torch.testing.assert_close(Affine.of(layer).after(Affine.of(norm)).linear()(x), layer(norm(x)))
    with pytest.raises(TypeError, match="LayerNorm is not affine"):
        Affine.of(nn.LayerNorm(6))


def test_two_norms_are_the_norms() -> None:
    torch.manual_seed(0)
    norms = [CenterNorm(6).double() for _ in range(2)]
    for norm in norms:
        nn.init.normal_(norm.weight)
    x = torch.randn(5, 6, dtype=torch.float64)
    constant = torch.randn(6, dtype=torch.float64)
    torch.testing.assert_close(TwoNorms(*norms, 1.0, constant)(x), norms[1](norms[0](x)) + constant)
