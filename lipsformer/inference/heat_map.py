"""Heat maps: which parts of an image spoke for a class, and which against it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lipsformer.system.errors import InputError

from .runtimes import INPUT_NAME, Pixels, open_session

__all__ = ["CHOSEN_NAME", "HEAT_MAP_OUTPUTS", "STAGE_KEY", "Explainer", "GraphExplainer", "HeatMap"]

CHOSEN_NAME = "chosen"  # of the graph's second input: 1 for the class to explain, 0 for the others
HEAT_MAP_OUTPUTS = ("contributions", "logit", "bias")
STAGE_KEY = "lipsformer_heat_map_stage"  # of the graph's metadata


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class HeatMap:
    """Contributions (H, W) of the tokens of a stage (1 to 4) to the calibrated logit of class `index`.

    `bias` is the head's bias of the class, the part of the logit that no pixel decides. In stage 4 the contributions
    sum to `logit` - `bias`.
    """

    contributions: NDArray[np.float32]
    index: int
    logit: float
    bias: float
    stage: int

    @property
    def sum(self) -> float:
        """The sum of the contributions."""
        return float(self.contributions.sum(dtype=np.float64))

    @property
    def completeness(self) -> float | None:
        """Their sum over logit - bias: 1 if the map accounts for all of the logit; None if that is bias alone."""
        return self.sum / (self.logit - self.bias) if self.logit != self.bias else None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "index": self.index,
            "logit": self.logit,
            "bias": self.bias,
            "sum": self.sum,
            "completeness": self.completeness,
            "stage": self.stage,
            "map": self.contributions.tolist(),
        }


class Explainer(Protocol):
    """Anything that draws heat maps, all of one `stage` (1 to 4)."""

    stage: int

    def explain(self, pixels: Pixels, index: int) -> HeatMap:
        """The heat map of pixels (S, S, 3) for class `index`."""
        ...


class GraphExplainer:
    """Heat maps of a bundle: a separate graph, run by ONNX Runtime on the CPU.

    Args:
        graph: what `lipsformer export --explain` wrote.
        threads: CPU threads; by default all cores.

    Raises:
        InputError: if it is not such a graph.
    """

    def __init__(self, graph: Path, threads: int | None = None) -> None:
        self._session = open_session(graph, cuda=False, threads=threads)
        inputs = [(value.name, value.type) for value in self._session.get_inputs()]
        outputs = tuple(value.name for value in self._session.get_outputs())
        stage = self._session.get_modelmeta().custom_metadata_map.get(STAGE_KEY, "")
        known = [(INPUT_NAME, "tensor(uint8)"), (CHOSEN_NAME, "tensor(float)")]
        if inputs != known or outputs != HEAT_MAP_OUTPUTS or not stage.isdigit():
            raise InputError(f"{graph}: not a graph of heat maps; export the bundle again with --explain")
        self.stage = int(stage)
        self._classes: int = self._session.get_inputs()[1].shape[1]

    def explain(self, pixels: Pixels, index: int) -> HeatMap:
        """The heat map of pixels (S, S, 3) for class `index`."""
        chosen = np.zeros((1, self._classes), np.float32)
        chosen[0, index] = 1.0
        found, logit, bias = self._session.run(None, {INPUT_NAME: pixels[None], CHOSEN_NAME: chosen})
        return HeatMap(
            contributions=found[0], index=index, logit=float(logit[0]), bias=float(bias[0]), stage=self.stage
        )
