"""Contributions of tokens to a logit: the gradient times the activations, summed over the channels of each token.

This is HiResCAM (Draelos and Carin, arXiv 2011.08891), a class-activation method, at the output of any stage.

Theorem. Let z_p be the n tokens of the last stage behind the final norm, w_k and b_k the head's weights and bias of
class k. Then logit_k = b_k + sum over p of <w_k, z_p> / n, and <w_k, z_p> / n is the contribution of token p.

Pooling is the mean over the tokens, and the head is affine. So the gradient of logit_k in z_p is w_k / n for every
image, and the gradients times the tokens sum to logit_k - b_k. A flat head has weights w_kp for each token instead of
w_k / n, and the same holds.

So the map of the last stage is complete: it sums to the logit minus the head's bias, for any norm. How far back does
that reach? Behind the last attention, every layer treats each token alone (MLP, residuals, norms). The contribution of
token p is thus a function of the single token p right behind the last attention; in front of it, attention mixes tokens
and the decomposition ends. With CenterNorm everything behind the last GELU is affine as well, so the contribution is
affine in the token before the last MLP and in its hidden units. A LayerNorm is not, but it treats each token alone.

At an earlier stage the sum is a first-order approximation. Its completeness, the sum over logit minus bias, is measured
for every map: 1 in the last stage.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lipsformer.model.blocks import LipsFormer, Stage
from lipsformer.model.config import ModelConfig

__all__ = ["contributions", "default_stage", "logits_of", "tokens_of"]

ENOUGH_TOKENS = 7  # along a side


def default_stage(config: ModelConfig) -> int:
    """The stage, from 0, to explain: the last one with 7x7 tokens or more, else the first.

    At 224 pixels that is the last stage, whose map is exact.
    """
    stages = range(len(config.depths))
    return max((stage for stage in stages if config.resolution(stage) >= ENOUGH_TOKENS), default=0)


def tokens_of(model: LipsFormer, image: Tensor, stage: int) -> Tensor:
    """The output (B, H, W, C) of `stage` for normalized images (B, 3, S, S); in the last stage, behind the norm."""
    tokens = model.forward_stages(image, stages=stage + 1)[-1]
    return model.norm(tokens) if stage == model.config.last_stage else tokens


def logits_of(model: LipsFormer, tokens: Tensor, stage: int) -> Tensor:
    """The logits (B, K) that follow from the `tokens` (B, H, W, C) of `stage`."""
    if stage < model.config.last_stage:
        explained = model.layers[stage]
        assert isinstance(explained, Stage)  # noqa: S101 - a ModuleList forgets the type
        following = explained.downsample(tokens)
        for layer in model.layers[stage + 1 :]:
            tokens, following = layer(following)
        tokens = model.norm(tokens)
    logits: Tensor = model.head(model.pool(tokens))
    return logits


def contributions(model: LipsFormer, image: Tensor, chosen: Tensor, stage: int) -> tuple[Tensor, Tensor]:
    """How much each token of `stage` contributes to the logit of a class.

    Args:
        model: in eval mode.
        image: normalized images (B, 3, S, S).
        chosen: (B,) int64, the class of each image.
        stage: from 0.

    Returns:
        The contributions (B, H, W), and the logits (B, K).
    """
    with torch.no_grad():
        tokens = tokens_of(model, image, stage)
    with torch.enable_grad():
        tokens.requires_grad_()
        logits = logits_of(model, tokens, stage)
        (gradient,) = torch.autograd.grad(logits.gather(1, chosen[:, None]).sum(), tokens)
    return (gradient * tokens.detach()).sum(dim=-1), logits.detach()
