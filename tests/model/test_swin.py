"""The Swin form: equal to the official code, to Swin itself where it is configured so, and to the formulas."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from lipsformer.model.config import SwinConfig
from lipsformer.model.swin import LipsFormerSwin, WindowAttention
from lipsformer.model.variants import VARIANTS
from lipsformer.model.windows import window_partition, window_reverse
from tests.support.models.dense_forward import dense_forward
from tests.support.models.official_forward import official_forward
from tests.support.models.small_models import EQUAL, PLAIN_SWIN, SEEN, SWIN, disagreement, scrambled

MICRO = SwinConfig(
    image_size=64, window_size=4, embed_dim=32, depths=(1, 1, 2, 1), num_heads=(1, 2, 4, 8), num_classes=10
)
LAYOUTS = {
    "two windows a side and more": {},
    "windows cut to the map": {"image_size": 32, "window_size": 8},
    "three-wide windows": {"image_size": 96, "window_size": 3},
    "two-wide windows": {"window_size": 2},
    "small patches": {"image_size": 32, "patch_size": 2},
}


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
    for ours in (
        (model.forward_features(image), model(image)),
        official_outputs(model, image),
        dense_forward(model.state_dict(), image, MICRO.to_dict()),
    ):
        torch.testing.assert_close(ours, (features, logits), rtol=0, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@torch.no_grad()
def test_equals_the_formulas_written_out_again(layout: dict[str, int]) -> None:
    config = SWIN.replace(**layout)
    model = scrambled(config)
    assert isinstance(model, LipsFormerSwin)
    assert disagreement(model) < EQUAL
    image = torch.randn(2, 3, config.image_size, config.image_size, dtype=torch.float64)
    ours = model.forward_features(image), model(image)
    torch.testing.assert_close(ours, official_outputs(model, image), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_plain_swin_equals_the_formulas_written_out_again(layout: dict[str, int]) -> None:
    assert disagreement(scrambled(PLAIN_SWIN.replace(depths=(2, 2, 3, 2), **layout))) < EQUAL


def shifted(model: LipsFormerSwin) -> list[WindowAttention]:
    return [m for m in model.modules() if isinstance(m, WindowAttention) and m.shift]


def test_the_comparison_sees_wrong_masks_shifts_and_windows() -> None:
    def error_after(spoil) -> float:  # type: ignore[no-untyped-def]
        model = scrambled(PLAIN_SWIN)
        attentions = shifted(model)
        assert len(attentions) == 1  # the second block of the second stage; the third stage's map is one window
        with torch.no_grad():
            spoil(attentions[0])
        return disagreement(model)

    assert error_after(lambda attention: None) < EQUAL
    assert error_after(lambda attention: attention.mask.zero_()) > SEEN
    assert error_after(lambda attention: setattr(attention, "shift", 0)) > SEEN
    assert error_after(lambda attention: setattr(attention, "shift", -attention.shift)) > SEEN
    assert error_after(lambda attention: attention.mask.copy_(attention.mask.flip(0))) > SEEN
    assert error_after(lambda a: a.relative_position_index.copy_(a.relative_position_index.T.clone())) > SEEN


def test_names_and_shapes_are_the_official_ones(reference: Path) -> None:
    official = json.loads((reference / "official_swin_tiny_keys.json").read_text())
    expected = {name: shape for name, shape in official.items() if not name.endswith("relative_position_index")}
    with torch.device("meta"):
        state = LipsFormerSwin(VARIANTS["lipsformer_swin_tiny"]).state_dict()
    assert {name: list(tensor.shape) for name, tensor in state.items()} == expected


def test_windows_split_and_merge_are_inverse() -> None:
    x = torch.arange(2 * 6 * 9 * 4.0).reshape(2, 6, 9, 4)
    windows = window_partition(x, 2, 3)
    assert windows.shape == (2 * 3 * 3, 6, 4)
    assert torch.equal(windows[1].reshape(2, 3, 4), x[0, :2, 3:6])
    assert torch.equal(window_reverse(windows, 2, 3, 6, 9), x)


WINDOWS = SwinConfig(image_size=32, window_size=2, embed_dim=4, num_heads=(2, 2, 2, 2))  # a map of 8 x 8


@pytest.mark.parametrize("attention", ["cosine", "dot"])
@pytest.mark.parametrize("shift", [0, 1])
def test_attention_sees_its_window_only_and_has_exact_gradients(attention: str, shift: int) -> None:
    torch.manual_seed(0)
    layer = WindowAttention(WINDOWS.replace(attention=attention), stage=0, shift=shift).double()
    x = torch.randn(1, 8, 8, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,), fast_mode=True)
    # Shifted windows begin at 1, so tokens 3 and 4 share one; the first and the last row have a window of their own.
    for place, begin, end in ((3, 2 + shift, 4 + shift), (0, 0, 2 - shift), (7, 6 + shift, 8)):
        (seen,) = torch.autograd.grad(layer(x)[0, place, place].sum(), x)
        expected = torch.zeros(8, 8, dtype=torch.bool)
        expected[begin:end, begin:end] = True
        assert torch.equal(seen[0].abs().sum(-1) > 1e-30, expected)


def test_attention_is_blind_to_the_lengths_of_queries_and_keys() -> None:
    torch.manual_seed(0)
    attention = WindowAttention(WINDOWS.replace(embed_dim=8), stage=0, shift=0).double()
    x = torch.randn(1, 4, 4, 8, dtype=torch.float64)
    before = attention(x)
    with torch.no_grad():
        attention.qkv.weight[:16] *= 7.0
        attention.qkv.bias[:16] *= 7.0
    torch.testing.assert_close(attention(x), before)
