"""The graph of heat maps gives the gradient that PyTorch's autograd gives, for every kind of network."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from lipsformer import Preprocessing, load_checkpoint
from lipsformer.checkpoints.checkpoint import Checkpoint
from lipsformer.evaluation.heat_maps.contributions import logits_of, tokens_of
from lipsformer.evaluation.heat_maps.explainer import TorchExplainer
from lipsformer.export import ExportSettings, bundle
from lipsformer.export.graph import PixelsToHeatMap, build_heat_map_graph
from lipsformer.export.tracing.gradient import Tape
from lipsformer.inference.heat_map import GraphExplainer
from lipsformer.inference.runtimes import TorchRuntime
from lipsformer.model.config import ModelConfig
from lipsformer.system.errors import GateError
from tests.support.models.small_models import CSWIN, EQUAL, PLAIN_CSWIN, PLAIN_SWIN, SWIN, random_images, scrambled
from tests.support.trained import Trained

CONFIGS = {"swin": SWIN, "cswin": CSWIN, "plain swin": PLAIN_SWIN, "plain cswin": PLAIN_CSWIN}


def checkpoint_of(config: ModelConfig) -> Checkpoint:
    return Checkpoint(
        config=config,
        classes=tuple("abcde"),
        preprocessing=Preprocessing(image_size=config.image_size),
        metrics={},
        temperature=0.5,
        model=scrambled(config),
    )


@pytest.mark.parametrize("stage", [0, 3])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_rules_give_the_gradient_of_autograd(config: ModelConfig, stage: int) -> None:
    model, images = scrambled(config), random_images(config)
    weights = torch.linspace(-1, 1, 10, dtype=torch.float64).reshape(2, 5)
    with torch.no_grad():
        tokens = tokens_of(model, images, stage)
        with Tape(tokens) as tape:
            logits = logits_of(model, tokens, stage)
        found = tape.gradient(logits, weights)
    tokens.requires_grad_()
    (wanted,) = torch.autograd.grad((logits_of(model, tokens, stage) * weights).sum(), tokens)
    torch.testing.assert_close(found, wanted, rtol=EQUAL, atol=EQUAL * float(wanted.abs().max()))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_graph_computes_the_map_of_pytorch(config: ModelConfig, tmp_path: Path) -> None:
    checkpoint = checkpoint_of(config)
    checkpoint.model.float()
    onnx.save(build_heat_map_graph(checkpoint), tmp_path / "heat-maps.onnx")
    graph, reference = GraphExplainer(tmp_path / "heat-maps.onnx", threads=1), TorchExplainer(TorchRuntime(checkpoint))
    assert graph.stage == reference.stage == 2
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    for index in (0, 3):
        found, wanted = graph.explain(pixels, index), reference.explain(pixels, index)
        error = np.linalg.norm(found.contributions - wanted.contributions) / np.linalg.norm(wanted.contributions)
        assert error < 1e-4
        assert found.logit == pytest.approx(wanted.logit, rel=1e-4)
        assert found.bias == pytest.approx(wanted.bias, rel=1e-6)


def test_a_graph_of_other_maps_fails_the_gate(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def detuned(checkpoint: Checkpoint) -> onnx.ModelProto:
        other = copy.deepcopy(checkpoint)
        with torch.no_grad():
            other.model.head.weight.mul_(1.001)
        return build_heat_map_graph(other)

    monkeypatch.setattr(bundle, "build_heat_map_graph", detuned)
    with pytest.raises(GateError, match=r"heat-maps\.onnx: parity failed, no bundle written: relative L2 0\.001 of a"):
        bundle.export_bundle(trained.checkpoint, tmp_path / "bundle", ExportSettings(explain=True, parity_images=2))
    assert not (tmp_path / "bundle").exists()


def test_images_of_one_batch_are_explained_apart(trained: Trained) -> None:
    network = PixelsToHeatMap(load_checkpoint(trained.checkpoint)).eval()
    pixels = torch.randint(0, 256, (3, 32, 32, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    chosen = torch.eye(len(trained.classes))[:3]
    with torch.no_grad():
        together = network(pixels, chosen)
        alone = [network(pixels[at : at + 1], chosen[at : at + 1]) for at in range(3)]
    for place, found in enumerate(together):
        torch.testing.assert_close(found, torch.cat([one[place] for one in alone]), rtol=1e-4, atol=1e-4)


def test_a_function_without_a_rule_is_refused() -> None:
    start = torch.ones(1, 2)
    with Tape(start) as tape:
        result = torch.tanh(start)
    with pytest.raises(NotImplementedError, match="no rule for the gradient of tanh"):
        tape.gradient(result, torch.ones(1, 2))
