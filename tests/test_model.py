"""The Swin form: equal to the official code, the right size, and with the properties that its parts promise."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from official import official_forward

from lipsformer.config import SwinConfig, config_from_dict
from lipsformer.errors import InputError
from lipsformer.models import create_model, summarise
from lipsformer.norm import CenterNorm
from lipsformer.residual import DropPath
from lipsformer.spectral import spectral_norm
from lipsformer.swin import LipsFormerSwin, WindowAttention
from lipsformer.variants import VARIANTS, make_config
from lipsformer.windows import merge_windows, split_windows

MICRO = SwinConfig(
    image_size=64, window_size=4, embed_dim=32, depths=(1, 1, 2, 1), num_heads=(1, 2, 4, 8), num_classes=10
)
SMALLEST = SwinConfig(
    image_size=32, window_size=8, embed_dim=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2), num_classes=3
)

WINDOWS = SwinConfig(image_size=32, window_size=2, embed_dim=8, num_heads=(2, 2, 2, 2))


def official_outputs(model: LipsFormerSwin, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    config = model.config
    return official_forward(
        model.state_dict(),
        image,
        patch=config.patch_size,
        window=config.window_size,
        depths=config.depths,
        heads=config.num_heads,
    )


def load_official_micro(reference: Path) -> LipsFormerSwin:
    state = torch.load(reference / "official_swin_micro.pth", weights_only=True)["model"]
    model = LipsFormerSwin(MICRO).eval()
    model.load_state_dict({name: t for name, t in state.items() if not name.endswith("relative_position_index")})
    return model


@torch.no_grad()
def test_equals_the_outputs_of_the_official_code(reference: Path) -> None:
    model = load_official_micro(reference)
    with np.load(reference / "official_swin_micro_io.npz") as data:
        image, features, logits = (torch.from_numpy(data[name]) for name in ("x", "features", "logits"))
    torch.testing.assert_close(model.forward_features(image), features, rtol=0, atol=1e-5)
    torch.testing.assert_close(model(image), logits, rtol=0, atol=1e-5)
    again = official_outputs(model, image)
    torch.testing.assert_close(again[0], features, rtol=0, atol=1e-5)
    torch.testing.assert_close(again[1], logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "config",
    [
        SMALLEST,
        SMALLEST.replace(image_size=96, window_size=3, num_heads=(1, 2, 4, 8)),
        SMALLEST.replace(image_size=32, patch_size=2, depths=(1, 2, 1, 2)),
    ],
    ids=["windows cut to the map", "three-wide windows", "small patches"],
)
@torch.no_grad()
def test_equals_the_formulas_written_out_again(config: SwinConfig) -> None:
    torch.manual_seed(0)
    model = LipsFormerSwin(config).double().eval()
    for parameter in model.parameters():  # biases, scales and tables start at constants, which would hide a mix-up
        parameter.copy_(torch.randn_like(parameter) * 0.3)
    image = torch.randn(2, 3, config.image_size, config.image_size, dtype=torch.float64)
    features, logits = official_outputs(model, image)
    torch.testing.assert_close(model.forward_features(image), features, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(model(image), logits, rtol=1e-9, atol=1e-9)


def test_names_and_shapes_are_the_official_ones(reference: Path) -> None:
    official = json.loads((reference / "official_swin_tiny_keys.json").read_text())
    expected = {name: shape for name, shape in official.items() if not name.endswith("relative_position_index")}
    with torch.device("meta"):
        state = LipsFormerSwin(VARIANTS["lipsformer_swin_tiny"]).state_dict()
    assert {name: list(tensor.shape) for name, tensor in state.items()} == expected


@pytest.mark.parametrize(
    ("name", "parameters", "multiply_adds"),
    [
        ("lipsformer_swin_tiny", 30_908_578, 4.978e9),
        ("lipsformer_swin_small", 54_479_794, 9.663e9),
        ("lipsformer_swin_base", 96_011_168, 16.969e9),
    ],
)
def test_size_and_cost(name: str, parameters: int, multiply_adds: float) -> None:
    summary = summarise(name)
    assert summary.parameters == parameters
    assert summary.multiply_adds == pytest.approx(multiply_adds, rel=0.005)
    assert summary.image_size == 224


def test_nano_is_between_three_and_five_million_parameters() -> None:
    assert 3e6 < summarise("lipsformer_swin_nano").parameters < 5e6


def test_nano_starts_with_finite_outputs_and_gradients() -> None:
    torch.manual_seed(0)
    model = create_model("lipsformer_swin_nano", num_classes=5)
    flat_and_noisy = torch.cat([torch.zeros(1, 3, 64, 64), torch.randn(1, 3, 64, 64)])
    logits = model(flat_and_noisy)
    assert logits.shape == (2, 5)
    assert logits.isfinite().all()
    logits.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@torch.no_grad()
def test_tiny_starts_with_finite_outputs() -> None:
    torch.manual_seed(0)
    logits = create_model("lipsformer_swin_tiny")(torch.randn(1, 3, 224, 224))
    assert logits.shape == (1, 1000)
    assert logits.isfinite().all()


def test_spectral_initialisation_gives_every_layer_norm_one() -> None:
    torch.manual_seed(0)
    model = create_model("lipsformer_swin_nano", num_classes=3, embed_dim=8, num_heads=(1, 1, 2, 2))
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)]
    norms = [float(torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2)) for layer in layers]
    assert norms == pytest.approx([1.0] * len(norms), abs=1e-3)
    scales = [p for name, p in model.named_parameters() if name.endswith(".scale")]
    assert all(bool((p == 1 / 12).all()) for p in scales)
    assert len(scales) == 12 * 4


@torch.no_grad()
def test_an_images_logits_do_not_depend_on_its_batch() -> None:
    torch.manual_seed(0)
    model = LipsFormerSwin(SMALLEST).double().eval()
    images = torch.randn(5, 3, 32, 32, dtype=torch.float64)
    together = model(images)
    alone = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)


def test_windows_split_and_merge_are_inverse() -> None:
    x = torch.arange(2 * 6 * 9 * 4.0).reshape(2, 6, 9, 4)
    windows = split_windows(x, 2, 3)
    assert windows.shape == (2 * 3 * 3, 6, 4)
    assert torch.equal(windows[1].reshape(2, 3, 4), x[0, :2, 3:6])
    assert torch.equal(merge_windows(windows, 2, 3, 6, 9), x)


def test_attention_sees_its_window_only_and_has_exact_gradients() -> None:
    torch.manual_seed(0)
    attention = WindowAttention(WINDOWS.replace(embed_dim=4), stage=0, shift=0).double()
    x = torch.randn(1, 4, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(attention, (x,))
    attention(x)[0, :2, :2].sum().backward()
    assert x.grad is not None
    assert x.grad[0, :2, :2].abs().sum() > 0
    assert x.grad[0, 2:].abs().sum() == 0
    assert x.grad[0, :, 2:].abs().sum() == 0


def test_attention_is_blind_to_the_lengths_of_queries_and_keys() -> None:
    torch.manual_seed(0)
    attention = WindowAttention(WINDOWS, stage=0, shift=0).double()
    x = torch.randn(1, 4, 4, 8, dtype=torch.float64)
    before = attention(x)
    with torch.no_grad():
        attention.qkv.weight[:16] *= 7.0
        attention.qkv.bias[:16] *= 7.0
    torch.testing.assert_close(attention(x), before)


def test_center_norm_is_linear_with_the_promised_lipschitz_constant() -> None:
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


def test_drop_path_keeps_the_expectation_and_drops_whole_samples() -> None:
    torch.manual_seed(0)
    drop = DropPath(0.25)
    x = torch.ones(20_000, 2, 3)
    out = drop(x)
    assert out.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert torch.equal(out, out[:, :1, :1].expand_as(out))
    assert float(out.mean()) == pytest.approx(1.0, abs=5 * math.sqrt(0.25 / 0.75 / len(x)))
    assert drop.eval()(x) is x
    assert DropPath(0.0)(x) is x


def test_drop_path_rates_grow_linearly_over_the_blocks() -> None:
    model = LipsFormerSwin(MICRO.replace(drop_path=0.4))
    rates = [module.rate for module in model.modules() if isinstance(module, DropPath)]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])


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


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"image_size": 225}, "image_size=225 cannot be tiled with patch_size=4 and window_size=7; use image_size 224"),
        ({"image_size": 64}, "or keep the rest and use window_size 4 or 8"),
        ({"image_size": 16}, "image_size=16 cannot be tiled"),
        ({"image_size": 416}, "image_size=416 cannot be tiled"),
        ({"image_size": 0}, "image_size=0: a whole number of at least 1"),
        ({"image_size": 224.0}, "image_size=224.0: a whole number"),
        ({"num_heads": (5, 6, 12, 24)}, "5 does not divide 96 channels"),
        ({"depths": (2, 2, 6)}, "depths=(2, 2, 6): 4 whole numbers"),
        ({"depths": 5}, "depths=5: 4 whole numbers"),
        ({"embed_dim": 1, "num_heads": (1, 1, 1, 1)}, "embed_dim=1: a whole number of at least 2"),
        ({"drop_path": 1.0}, "drop_path=1.0: a rate of at least 0 and below 1"),
        ({"mlp_ratio": "4"}, "mlp_ratio='4': a number is needed"),
        ({"mlp_ratio": 0.001}, "mlp_ratio must leave the MLP a channel"),
        ({"temperature": math.inf}, "temperature=inf: a number is needed"),
        ({"temperature": -1}, "must be above 0"),
        ({"windowsize": 8}, "unknown model setting 'windowsize': did you mean 'window_size'?"),
    ],
)
def test_a_bad_configuration_is_told(changes: dict[str, object], told: str) -> None:
    with pytest.raises(InputError) as failure:
        make_config("lipsformer_swin_tiny", **changes)
    assert told in str(failure.value)
    assert "\n" not in str(failure.value)


def test_an_unknown_variant_suggests_the_near_one() -> None:
    with pytest.raises(InputError, match="did you mean 'lipsformer_swin_tiny'"):
        create_model("lipsformer_swin_tinny")


@pytest.mark.parametrize(("image_size", "window_size"), [(32, 8), (64, 4), (96, 3), (128, 8), (224, 7), (384, 12)])
@torch.no_grad()
def test_image_sizes_that_can_be_tiled(image_size: int, window_size: int) -> None:
    config = SMALLEST.replace(image_size=image_size, window_size=window_size)
    model = LipsFormerSwin(config)
    assert model(torch.randn(1, 3, image_size, image_size)).shape == (1, 3)
    with pytest.raises(ValueError, match=rf"\(batch, 3, {image_size}, {image_size}\) needed"):
        model(torch.randn(1, 3, image_size, image_size + 4))


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_configurations_survive_json(config: SwinConfig) -> None:
    assert config_from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_another_architecture_is_refused() -> None:
    with pytest.raises(InputError, match="architecture 'resnet' is not known"):
        config_from_dict({**MICRO.to_dict(), "architecture": "resnet"})
