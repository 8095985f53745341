"""Bounds of blocks and networks, the lower bounds below them, and the command that reports both."""

from __future__ import annotations

import itertools
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from lipsformer import Preprocessing, cli, save_checkpoint
from lipsformer.evaluation.lipschitz.local import local_norm, local_profile, network_steps
from lipsformer.evaluation.lipschitz.report import cumulative, measure_lipschitz
from lipsformer.images.samples import SAMPLES
from lipsformer.model.blocks import Block, LipsFormer, Stage
from lipsformer.model.config import CSwinConfig, ModelConfig, SwinConfig
from lipsformer.model.factory import build_model
from lipsformer.model.lipschitz.bounds import Bound, bound_block, bound_network, flatten
from lipsformer.model.lipschitz.spectral import spectral_norm
from tests.model.lipschitz.slopes import jacobian, steepest
from tests.support.models.small_models import CERTIFIED
from tests.support.trained import Trained

COMMON: dict[str, Any] = {"image_size": 32, "num_classes": 3, "embed_dim": 8, "depths": (2, 1, 1, 1), "epsilon": 1e-2}
CSWIN = CSwinConfig(**COMMON, num_heads=(2, 2, 4, 4), split_sizes=(2, 2, 2, 2))
SWIN = SwinConfig(**COMMON, num_heads=(1, 2, 2, 4), window_size=4, value_norm=True)
BOUNDED: dict[str, ModelConfig] = {
    "cswin": CSWIN,
    "swin": SWIN,
    "shifted windows": SWIN.replace(shifted_windows=True, conv_branches=1),
    "learned scales": CSWIN.replace(learned_scales=True, conv_branches=2),
    "layer norm": SWIN.replace(norm="layer", conv_branches=0),
    "in front": CSWIN.replace(norm_position="pre"),
    "layer norm in front": CSWIN.replace(norm="layer", norm_position="pre"),
    "plain residuals": SWIN.replace(residual="plain"),
    "certified": CERTIFIED,
    "convex in front": CSWIN.replace(residual="convex", activation="maxmin", norm_position="pre", conv_branches=2),
    "weighted maxmin": SWIN.replace(activation="maxmin"),
}


def scrambled(config: ModelConfig) -> LipsFormer:
    """With random parameters, in float64."""
    torch.manual_seed(0)
    model = build_model(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def value(bound: Bound) -> float:
    assert bound.log10 is not None, bound.reason
    return 10**bound.log10


@pytest.mark.slow
@pytest.mark.parametrize("name", BOUNDED)
def test_no_part_of_a_network_is_steeper_than_its_bound(name: str) -> None:
    model = scrambled(BOUNDED[name])
    bound = bound_network(model)
    shape = (3, 32, 32)
    for step, part in zip(network_steps(model), flatten(bound), strict=True):
        assert 0 < steepest(step, shape, points=4) <= value(part), part.name
        shape = tuple(step(torch.zeros(1, *shape, dtype=torch.float64)).shape[1:])
    assert steepest(model, (3, 32, 32), points=4) <= value(bound)


@pytest.mark.parametrize("config", [CSWIN, SWIN])
def test_embeddings_and_merges_are_not_much_below_their_bounds(config: ModelConfig) -> None:
    model = scrambled(config)
    bound = bound_network(model)
    embedding = spectral_norm(jacobian(model.patch_embed, (3, 32, 32)))
    assert embedding <= value(bound.parts[0]) <= 1.5 * embedding
    merging = cast(Stage, model.layers[1]).downsample
    true = spectral_norm(jacobian(merging, (4, 4, 16)))
    assert true <= value(bound.parts[2].parts[-1]) <= 1.5 * true


@pytest.mark.parametrize("config", [CSWIN, SWIN.replace(norm_position="pre")])
def test_a_block_is_its_branches_and_norms(config: ModelConfig) -> None:
    block = cast(Block, cast(Stage, scrambled(config).layers[1]).blocks[0])
    bound = bound_block(block, 4)
    parts = {part.name: value(part) for part in bound.parts}
    convolutions = [1 + parts[name] for name in parts if name.startswith("convolution")]
    if config.norm_position == "post":
        rest = (1 + parts["attention"]) * parts["norm 1"] * (1 + parts["mlp"]) * parts["norm 2"]
    else:
        rest = (1 + parts["attention"] * parts["norm 1"]) * (1 + parts["mlp"] * parts["norm 2"])
    assert value(bound) == pytest.approx(math.prod(convolutions) * rest, rel=1e-6)
    with torch.no_grad():  # without the weighted branches, what is left are the norms
        for alpha in (*block.scale_layers, block.alpha1, block.alpha2):
            cast(torch.nn.Parameter, alpha.scale).zero_()
    expected = parts["norm 1"] * parts["norm 2"] if config.norm_position == "post" else 1.0
    assert value(bound_block(block, 4)) == pytest.approx(expected, rel=1e-6)


def test_a_network_is_the_product_of_its_steps() -> None:
    model = scrambled(CSWIN)
    bound = bound_network(model)
    steps = flatten(bound)
    assert len(steps) == 1 + 5 + 3 + 2
    assert bound.log10 == pytest.approx(sum(math.log10(value(step)) for step in steps))
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    out = x
    for step in network_steps(model):
        out = step(out)
    torch.testing.assert_close(out, model(x))


def test_constants_too_large_for_a_float_are_bounded_in_logarithms() -> None:
    model = scrambled(SWIN.replace(epsilon=1e-24, depths=(1, 1, 40, 1), embed_dim=4, num_heads=(1, 1, 1, 1)))
    log10 = bound_network(model).log10
    assert log10 is not None
    assert 400 < log10 < 1000


@pytest.mark.parametrize("settings", [{"value_norm": False}, {"value_norm": False, "attention": "dot"}])
def test_a_network_with_attention_that_is_not_lipschitz_is_not_bounded(settings: dict[str, Any]) -> None:
    bound = bound_network(scrambled(CSWIN.replace(**settings)))
    assert bound.log10 is None
    assert bound.reason is not None
    assert bound.reason.startswith("stage 1, block 1: ")
    block = {part.name: part for part in bound.parts[1].parts[0].parts}
    assert block["attention"].log10 is None
    assert all(part.log10 is not None for name, part in block.items() if name != "attention")


def test_weights_of_zero_have_bounds_too() -> None:
    model = scrambled(CSWIN)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    log10 = bound_network(model).log10
    assert log10 is not None
    assert log10 < -100


# Lower bounds.


def test_the_local_norm_is_that_of_the_jacobian() -> None:
    model = scrambled(CSWIN)
    image = torch.randn(3, 32, 32)
    point = image.double()[None].requires_grad_()
    rows = [torch.autograd.grad(logit, point, retain_graph=True)[0].flatten() for logit in model(point)[0]]
    true = spectral_norm(torch.stack(rows))
    assert 0.999 * true <= local_norm(model, image) <= true * (1 + 1e-9)


def test_the_profile_lies_below_the_bounds_and_ends_at_the_local_norm() -> None:
    model = scrambled(SWIN)
    image = torch.randn(3, 32, 32)
    profile = local_profile(model, image)
    sums = itertools.accumulate(math.log10(value(step)) for step in flatten(bound_network(model)))
    assert all(math.log10(norm) <= bound for norm, bound in zip(profile, sums, strict=True))
    assert profile[-1] == pytest.approx(local_norm(model, image), rel=0.05)
    assert model.training is False
    assert all(p.requires_grad for p in model.parameters())


# The command.

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `lipsformer lipschitz` in this process: (status, stdout, stderr)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["lipsformer", "lipschitz", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    return call


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("cswin") / "model.safetensors", scrambled(CSWIN).float())


def save(path: Path, model: LipsFormer) -> Path:
    save_checkpoint(
        path,
        config=model.config,
        weights=model.state_dict(),
        classes=["a", "b", "c"],
        preprocessing=Preprocessing(image_size=32),
        metrics={},
    )
    return path


def test_the_command_writes_table_json_and_plot(checkpoint: Path, run: Run, tmp_path: Path) -> None:
    status, out, err = run(checkpoint, "--images", 2, "--output", tmp_path / "report")
    assert status == 0, err
    assert sorted(p.name for p in (tmp_path / "report").iterdir()) == [
        "lipschitz.json",
        "lipschitz.md",
        "lipschitz.png",
    ]
    assert (tmp_path / "report" / "lipschitz.md").read_text() == out
    assert (tmp_path / "report" / "lipschitz.png").read_bytes().startswith(b"\x89PNG")
    document = json.loads((tmp_path / "report" / "lipschitz.json").read_text())
    assert document["pixel_factor"] == pytest.approx(1 / 0.224)
    assert document["lower_median"] <= document["lower_largest"] <= document["upper"]["log10"]
    assert f"upper bound: 10^{document['upper']['log10']:.2f}" in out
    table = [line for line in out.splitlines() if line.startswith("|")]
    assert len(table) == 2 + 11 + 4
    assert len({len(line) for line in table}) == 1


def test_json_alone_is_on_stdout(checkpoint: Path, run: Run) -> None:
    status, out, _ = run(checkpoint, "--images", 1, "--data", SAMPLES, "--json")
    assert status == 0
    document = json.loads(out)
    block = document["upper"]["parts"][1]["parts"][0]
    assert block["name"] == "stage 1, block 1"
    assert {"convolution 1", "attention", "mlp"} <= {part["name"] for part in block["parts"]}
    assert list(document["lower"]) == [str(sorted(SAMPLES.glob("*.jpg"))[0])]


def test_a_checkpoint_without_a_bound_is_told_so(trained: Trained, run: Run, tmp_path: Path) -> None:
    status, out, err = run(trained.checkpoint, "--images", 1, "--output", tmp_path / "report")
    assert status == 0, err
    assert "upper bound: not bounded (stage 1, block 1: cosine attention of plain values" in out
    document = json.loads((tmp_path / "report" / "lipschitz.json").read_text())
    assert document["upper"]["log10"] is None
    assert "value_norm" in document["upper"]["reason"]
    assert document["upper"]["parts"][0]["log10"] is not None


def test_the_steps_up_to_the_first_without_a_bound_have_one(trained: Trained) -> None:
    report = measure_lipschitz(trained.checkpoint, SAMPLES, 1)
    first, *rest = cumulative(report)
    assert first is not None
    assert set(rest) == {None}


def test_bad_input_is_refused_in_one_line(checkpoint: Path, run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    broken = scrambled(CSWIN).float()
    with torch.no_grad():
        broken.head.weight[0, 0] = math.nan
    for arguments, said in (
        ((checkpoint, "--images", 0), "--images 0"),
        ((checkpoint, "--data", tmp_path / "empty"), "no images found"),
        ((checkpoint, "--data", "fruits"), "did you mean 'fruit'"),
        ((tmp_path / "none.safetensors",), "no such checkpoint"),
        ((save(tmp_path / "broken.safetensors", broken),), "head.weight has values that are not finite"),
        ((checkpoint, "--images", 1, "--output", SAMPLES), "exists already"),
    ):
        status, out, err = run(*arguments)
        assert status == 2, err
        assert out == ""
        assert said in err
        assert err.startswith("lipsformer: ") or "\nlipsformer: " in err
