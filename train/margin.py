"""The margin loss: cross entropy of logits that an attack of a given size could reach, by the Lipschitz bound.

Within a ball of radius eps around an image, in pixels from 0 to 1, class j gains at most eps L |w_j - w_y| on the label
y, with L the bound of the features and w the rows of the head. The loss adds that to z_j, as EMMA does (Hu et al.,
NeurIPS 2023, arXiv 2301.12549), so that training maximizes what `lipsformer certify` measures.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lipsformer.model.blocks import LipsFormer
from lipsformer.model.lipschitz.bounds import bound_features
from lipsformer.system.errors import InputError

__all__ = ["BOUND_EVERY", "add_margin", "margin_at", "running_bound"]

BOUND_EVERY = 50  # steps between two computations of the bound, which takes a fraction of a step's time
LARGEST = 1e30  # a bound beyond this is as useless, and its product with a weight is still a number


def margin_at(step: int, total: int, margin: float, ramp: float) -> float:
    """Radius of the loss at `step` of `total`: from 0 in a straight line to `margin` over the share `ramp` of them."""
    return margin * min(1.0, step / (ramp * total)) if ramp else margin


def running_bound(model: LipsFormer, std: Sequence[float]) -> float:
    """The Lipschitz bound from pixels in 0..1, which are divided by `std`, to the features, of the current weights.

    Raises:
        InputError: if the network has none.
    """
    bound = bound_features(model, std)
    if bound.log10 is None:
        raise InputError(f"loss='margin' needs a network with a Lipschitz bound: {bound.reason}")
    return min(10 ** min(bound.log10, 300.0), LARGEST)


def add_margin(logits: Tensor, labels: Tensor, head: Tensor, reach: float) -> Tensor:
    """Logits (B, K) plus `reach` times |w_j - w_y|, for labels y (B,) and the head's rows w (K, C).

    `reach` is radius times bound: how far the features can move.
    """
    products = head @ head.T
    lengths = products.diagonal()
    distances = (lengths[:, None] + lengths - 2 * products).clamp_min(1e-12).sqrt()
    same = torch.eye(len(head), dtype=torch.bool, device=head.device)
    return logits + reach * distances.masked_fill(same, 0.0)[labels]
