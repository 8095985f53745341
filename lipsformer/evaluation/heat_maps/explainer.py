"""What draws the heat maps of a model."""

from __future__ import annotations

import torch

from lipsformer.inference.heat_map import Explainer, GraphExplainer, HeatMap
from lipsformer.inference.predictor import Predictor
from lipsformer.inference.runtimes import Pixels, TorchRuntime
from lipsformer.system.errors import InputError

from .contributions import contributions, default_stage

__all__ = ["TorchExplainer", "explainer_of"]


class TorchExplainer:
    """Heat maps of a checkpoint, computed by the PyTorch runtime that runs it.

    Args:
        runtime: of the checkpoint.
        stage: from 1; by default the last one with at least 7x7 tokens, else the first.

    Raises:
        InputError: if there is no such stage.
    """

    def __init__(self, runtime: TorchRuntime, stage: int | None = None) -> None:
        stages = len(runtime.model.config.depths)
        if stage is not None and not 1 <= stage <= stages:
            raise InputError(f"--stage {stage}: the network has the stages 1 to {stages}")
        self.stage = default_stage(runtime.model.config) + 1 if stage is None else stage
        self._runtime = runtime

    def explain(self, pixels: Pixels, index: int) -> HeatMap:
        """The heat map of pixels (S, S, 3) for class `index`."""
        model, device = self._runtime.model, self._runtime.device
        image = self._runtime.normalize(torch.tensor(pixels[None], device=device))
        found, logits = contributions(model, image, torch.tensor([index], device=device), self.stage - 1)
        return HeatMap(
            contributions=found[0].cpu().numpy(),
            index=index,
            logit=float(logits[0, index]),
            bias=float(model.head.bias.detach()[index]),
            stage=self.stage,
        )


def explainer_of(predictor: Predictor, stage: int | None = None) -> Explainer | None:
    """What draws heat maps of this model: PyTorch for a checkpoint, at any `stage` (from 1), or its bundle's graph.

    Returns:
        None for a bundle that was exported without heat maps, and for a graph alone.

    Raises:
        InputError: if there are no maps of this stage.
    """
    if isinstance(predictor.runtime, TorchRuntime):
        return TorchExplainer(predictor.runtime, stage)
    if predictor.heat_maps is None:
        return None
    explainer = GraphExplainer(predictor.heat_maps)
    if stage not in (None, explainer.stage):
        raise InputError(f"--stage {stage}: the bundle has heat maps of stage {explainer.stage}; give its checkpoint")
    return explainer
