"""The contributions of tokens: complete in the last stage, whatever the network, and Captum's at every stage."""

from __future__ import annotations

import pytest
import torch
from captum.attr import LayerGradientXActivation

from lipsformer.evaluation.heat_maps.contributions import contributions, default_stage, logits_of, tokens_of
from lipsformer.model.config import STAGES, ModelConfig
from lipsformer.model.variants import VARIANTS
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

CONFIGS = {"swin": SWIN, "cswin": CSWIN, "plain swin": PLAIN_SWIN, "plain cswin": PLAIN_CSWIN}
CHOSEN = torch.tensor([3, 1])


@pytest.mark.parametrize("config", [*CONFIGS.values(), CERTIFIED], ids=[*CONFIGS, "flat head"])
def test_the_last_map_sums_to_the_logit_without_its_bias(config: ModelConfig) -> None:
    model, images = scrambled(config), random_images(config)
    found, logits = contributions(model, images, CHOSEN, config.last_stage)
    with torch.no_grad():
        torch.testing.assert_close(logits, model(images), rtol=EQUAL, atol=0)
        wanted = (model.forward_features(images) * model.head.weight[CHOSEN]).sum(dim=-1)
    assert found.shape == (2, *[config.resolution(config.last_stage)] * 2)
    torch.testing.assert_close(found.sum(dim=(1, 2)), wanted, rtol=EQUAL, atol=0)
    chosen = logits.gather(1, CHOSEN[:, None])[:, 0] - model.head.bias.detach()[CHOSEN]
    torch.testing.assert_close(found.sum(dim=(1, 2)), chosen, rtol=EQUAL, atol=0)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("stage", range(STAGES))
def test_captum_finds_the_same(config: ModelConfig, stage: int) -> None:
    model, images = scrambled(config), random_images(config)
    layer = model.norm if stage == STAGES - 1 else model.layers[stage].blocks[-1]
    wanted = LayerGradientXActivation(model, layer).attribute(images, target=CHOSEN)
    found, _ = contributions(model, images, CHOSEN, stage)
    torch.testing.assert_close(found, wanted.sum(dim=-1).detach(), rtol=EQUAL, atol=EQUAL * float(found.abs().max()))


@pytest.mark.parametrize("config", [SWIN, CSWIN], ids=["swin", "cswin"])
@pytest.mark.parametrize("stage", range(STAGES))
def test_the_logits_follow_from_any_stage(config: ModelConfig, stage: int) -> None:
    model, images = scrambled(config), random_images(config)
    with torch.no_grad():
        found = logits_of(model, tokens_of(model, images, stage), stage)
        torch.testing.assert_close(found, model(images), rtol=EQUAL, atol=0)


def test_the_default_stage_is_the_last_with_enough_tokens() -> None:
    sides = {name: config.resolution(default_stage(config)) for name, config in VARIANTS.items()}
    assert {sides[f"lipsformer_{form}_tiny"] for form in ("swin", "cswin")} == {7}
    assert default_stage(VARIANTS["lipsformer_swin_tiny"]) == STAGES - 1
    assert (default_stage(VARIANTS["lipsformer_cswin_nano"]), sides["lipsformer_cswin_nano"]) == (1, 8)
    assert default_stage(SWIN.replace(image_size=32, window_size=4)) == 0
    assert default_stage(SWIN.replace(image_size=32, patch_size=4, window_size=8)) == 0
