"""The variants in timm; run by test_timm.py in a process that can import timm."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.data import resolve_model_data_config
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2, param_groups_layer_decay
from timm.utils import ModelEmaV3

import lipsformer
import lipsformer.integrations.timm
from lipsformer.integrations.timm import TimmLipsFormer, registry
from lipsformer.integrations.timm import model as timm_model
from lipsformer.model.blocks import LipsFormer
from lipsformer.model.factory import build_model
from lipsformer.model.variants import make_config
from lipsformer.train import load_recipe
from lipsformer.train.optim.param_groups import param_groups

DOCUMENT = Path(__file__).parents[2] / "docs" / "model.md"
NAMES = registry.NAMES
# Maps of 8, 4, 2 and 1 tokens a side.
SMALL: dict[str, Any] = {"embed_dim": 8, "depths": (1, 2, 2, 1), "num_heads": (2, 2, 4, 4), "patch_size": 4}
FORMS = ["lipsformer_swin_nano", "lipsformer_cswin_nano", "swin_nano", "cswin_nano"]
SIDE = 32


def in_timm(name: str, **kwargs: Any) -> TimmLipsFormer:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=kwargs.pop("num_classes", 5), img_size=SIDE, **SMALL, **kwargs)
    assert isinstance(model, TimmLipsFormer)
    return model


def ours(name: str, **overrides: Any) -> LipsFormer:
    torch.manual_seed(0)
    return lipsformer.create_model(name, overrides.pop("num_classes", 5), SIDE, **SMALL, **overrides)


def photos(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", NAMES)
def test_every_variant_is_registered_with_our_parameters(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm_model, "init_weights", lambda *_: None)
    assert timm.is_model(name)
    assert hasattr(registry, name)
    depths = (1, 2, 1, 1)
    with torch.device("meta"):
        model, wanted = (
            timm.create_model(name, num_classes=9, depths=depths),
            build_model(make_config(name, num_classes=9, depths=depths)),
        )
    assert model.config == wanted.config
    shapes = {key: tensor.shape for key, tensor in wanted.state_dict().items()}
    assert {key: tensor.shape for key, tensor in model.state_dict().items()} == shapes


@pytest.mark.parametrize("name", FORMS)
def test_logits_are_ours_to_the_bit(name: str) -> None:
    model, wanted = in_timm(name, drop_path_rate=0.5), ours(name, drop_path=0.5)
    for training in (False, True):
        torch.manual_seed(2)
        found = model.train(training)(photos())
        torch.manual_seed(2)
        assert torch.equal(found, wanted.train(training)(photos()))
    assert not torch.equal(found, model.eval()(photos()))  # something was dropped


@pytest.mark.parametrize("name", FORMS)
def test_a_training_step_of_timm_is_ours_to_the_bit(name: str) -> None:
    model, wanted = in_timm(name), ours(name)
    groups = param_groups(wanted, load_recipe("default"))
    steps = (
        (model, create_optimizer_v2(model, opt="adamw", lr=0.01, weight_decay=0.05)),
        (wanted, torch.optim.AdamW(groups, lr=0.01)),
    )
    before = model(photos())
    for trained, optimizer in steps:
        for _ in range(2):
            optimizer.zero_grad()
            LabelSmoothingCrossEntropy()(trained(photos()), torch.tensor([0, 1, 2])).backward()
            optimizer.step()
    assert torch.equal(model(photos()), wanted(photos()))
    assert not torch.equal(model(photos()), before)


@pytest.mark.parametrize("name", FORMS)
def test_a_replaced_classifier_is_ours_to_the_bit(name: str) -> None:
    model = in_timm(name)
    model.reset_classifier(7)
    assert (model.num_classes, model.config.num_classes) == (7, 7)
    assert model.get_classifier() is model.head
    wanted = ours(name, num_classes=7)
    wanted.load_state_dict(model.state_dict())
    for training in (False, True):
        assert torch.equal(model.train(training)(photos()), wanted.train(training)(photos()))
    assert model.config == wanted.config


def test_a_new_classifier_is_initialized_as_the_configuration_says() -> None:
    model = in_timm("lipsformer_swin_nano")
    model.reset_classifier(7)
    assert float(torch.linalg.matrix_norm(model.head.weight.detach(), ord=2)) == pytest.approx(1.0, rel=1e-5)
    assert not model.head.bias.any()


def test_no_classifier_gives_the_features_and_no_pooling_the_map() -> None:
    wanted = ours("lipsformer_cswin_nano").eval()
    for model in (in_timm("lipsformer_cswin_nano", num_classes=0).eval(), in_timm("lipsformer_cswin_nano").eval()):
        model.reset_classifier(0)
        wanted.load_state_dict({**wanted.state_dict(), **model.state_dict()})
        assert torch.equal(model(photos()), wanted.forward_features(photos()))
        model.reset_classifier(0, "")
        assert torch.equal(model(photos()), model.forward_features(photos()))
        assert torch.equal(model(photos()).mean(dim=(1, 2)), wanted.forward_features(photos()))
        model.reset_classifier(5, "avg")
        assert model(photos()).shape == (3, 5)


def test_head_features_and_dropout() -> None:
    model = in_timm("lipsformer_swin_nano", drop_rate=0.5).eval()
    wanted = ours("lipsformer_swin_nano").eval()
    tokens = model.forward_features(photos())
    assert tokens.shape == (3, 1, 1, model.num_features)
    assert torch.equal(model.forward_head(tokens, pre_logits=True), wanted.forward_features(photos()))
    assert torch.equal(model.forward_head(tokens), wanted(photos()))
    dropped = model.train().forward_head(tokens, pre_logits=True)
    assert 0.25 < float((dropped == 0).float().mean()) < 0.75


@pytest.mark.parametrize("name", FORMS)
def test_layer_decay_groups_are_those_of_our_training(name: str) -> None:
    model, wanted = in_timm(name), ours(name)

    def scales(groups: list[dict[str, Any]], network: LipsFormer) -> dict[str, tuple[float, float]]:
        names = {id(parameter): key for key, parameter in network.named_parameters()}
        return {names[id(p)]: (group["lr_scale"], group["weight_decay"]) for group in groups for p in group["params"]}

    found = param_groups_layer_decay(model, 0.05, model.no_weight_decay(), layer_decay=0.5)
    groups = param_groups(wanted, load_recipe("default", ["layer_decay=0.5"]))
    assert scales(found, model) == scales(groups, wanted)


def test_coarse_groups_are_the_stages() -> None:
    model = in_timm("lipsformer_swin_nano")
    groups = timm.models.group_parameters(model, model.group_matcher(coarse=True), reverse=True)
    for name, group in groups.items():
        stage = re.match(r"layers\.(\d)\.(downsample)?", name)
        assert group == (1 + int(stage[1]) + bool(stage[2]) if stage else 0 if name.startswith("patch_embed") else 5)


def test_learned_scales_do_not_decay() -> None:
    model = in_timm("lipsformer_swin_nano", learned_scales=True)
    kernels = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)}
    tables = {key for key, value in model.named_parameters() if value.ndim > 1 and id(value) not in kernels}
    assert model.no_weight_decay() == tables
    assert len(tables) == 3 * 6


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("indices", [(0, 1, 2, 3), (1, 2), (0, -1), (2, 1)])
def test_feature_maps(name: str, indices: tuple[int, ...]) -> None:
    model = timm.create_model(name, img_size=SIDE, features_only=True, out_indices=indices, **SMALL)
    wanted = ours(name)
    wanted.load_state_dict({**wanted.state_dict(), **model.model.state_dict()})
    stages = wanted.forward_stages(photos())
    for found, index in zip(model(photos()), indices, strict=True):
        assert torch.equal(found, stages[index].permute(0, 3, 1, 2))
    shapes = [(channels, SIDE // reduction) for channels, reduction in zip(*channels_of(model), strict=True)]
    assert [tuple(found.shape[1:3]) for found in model(photos())] == shapes
    sum(found.sum() for found in model(photos())).backward()
    assert [key for key, value in model.named_parameters() if value.grad is None] == []  # nothing idle, for DDP


def channels_of(model: Any) -> tuple[list[int], list[int]]:
    return model.feature_info.channels(), model.feature_info.reduction()


def test_feature_maps_by_hooks() -> None:
    model = timm.create_model("lipsformer_swin_nano", img_size=SIDE, features_only=True, feature_cls="hook", **SMALL)
    wanted = ours("lipsformer_swin_nano")
    wanted.load_state_dict({**wanted.state_dict(), **model.body.state_dict()})
    assert all(map(torch.equal, model(photos()), wanted.forward_stages(photos())))


def test_intermediate_features() -> None:
    model = in_timm("lipsformer_cswin_nano")
    final, maps = model.forward_intermediates(photos())
    assert torch.equal(final, model.forward_features(photos()))
    assert [tuple(found.shape) for found in maps] == [(3, 8, 8, 8), (3, 16, 4, 4), (3, 32, 2, 2), (3, 64, 1, 1)]
    (last,) = model.forward_intermediates(photos(), 1, norm=True, output_fmt="NHWC", intermediates_only=True)
    assert torch.equal(last, final)
    reached = []
    model.layers[2].register_forward_hook(lambda *_: reached.append(2))
    early, (second,) = model.forward_intermediates(photos(), [1], stop_early=True)
    assert torch.equal(early.permute(0, 3, 1, 2), second)
    assert torch.equal(second, maps[1])
    assert reached == []
    with pytest.raises(lipsformer.InputError, match="'NCHW' or 'NHWC'"):
        model.forward_intermediates(photos(), output_fmt="NLC")


def test_grad_checkpointing_changes_no_gradient() -> None:
    gradients = []
    for enable in (False, True):
        model = in_timm("lipsformer_swin_nano").train()
        model.set_grad_checkpointing(enable)
        calls: list[int] = []
        model.layers[0].blocks[0].mlp.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        model(photos()).sum().backward()
        assert len(calls) == 1 + enable
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(map(torch.equal, *gradients))


def test_averages_and_copies() -> None:
    model = in_timm("lipsformer_swin_nano")
    average = ModelEmaV3(model, decay=0.5)
    before = copy.deepcopy(model)
    with torch.no_grad():
        model.head.bias += 2.0
    average.update(model)
    assert torch.equal(average.module.head.bias, before.head.bias + 1.0)


@pytest.mark.parametrize("name", NAMES)
def test_data_configuration_is_the_preprocessing(name: str) -> None:
    cfg = timm.get_pretrained_cfg(name)
    size = make_config(name).image_size
    assert cfg.input_size == (3, size, size)
    wanted = lipsformer.Preprocessing(image_size=size, crop_pct=1.0 if "nano" in name and cfg.tag else 0.875)
    assert (cfg.crop_pct, cfg.interpolation) == (wanted.crop_pct, wanted.interpolation)
    assert (cfg.mean, cfg.std) == (wanted.mean, wanted.std)


def test_data_configuration_of_a_model() -> None:
    data = resolve_model_data_config(in_timm("lipsformer_swin_nano"))
    assert (data["mean"], data["crop_pct"]) == ((0.485, 0.456, 0.406), 0.875)


@pytest.mark.parametrize("name", ["lipsformer_cswin_nano", "lipsformer_cswin_nano.cifar10", "lipsformer_nano"])
def test_the_included_weights(name: str) -> None:
    wanted = lipsformer.load_checkpoint("lipsformer_cifar10")
    model = timm.create_model(name, pretrained=True).eval()
    assert torch.equal(model(photos()), wanted.model(photos()))
    assert model.pretrained_cfg["label_names"] == wanted.classes
    other = timm.create_model(name, pretrained=True, num_classes=3).eval()
    assert other(photos()).shape == (3, 3)
    assert torch.equal(other.forward_features(photos()), model.forward_features(photos()))


def test_official_weights_come_from_our_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert "lipsformer_swin_tiny.in1k" in timm.list_pretrained()
    wanted = ours("lipsformer_swin_tiny", num_classes=1000, window_size=8).eval()
    path = saved(wanted, tmp_path / "official.safetensors")
    asked: list[str] = []
    monkeypatch.setattr(registry, "resolve_model", lambda name: asked.append(name) or path)
    model = in_timm("lipsformer_swin_tiny", num_classes=1000, window_size=8, pretrained=True).eval()
    assert asked == ["lipsformer_swin_tiny.in1k"]
    assert torch.equal(model(photos()), wanted(photos()))
    in_timm("lipsformer_swin_tiny", window_size=8)
    assert len(asked) == 1


def test_a_variant_without_weights_says_so() -> None:
    with pytest.raises(RuntimeError, match="No pretrained weights exist for lipsformer_swin_nano"):
        timm.create_model("lipsformer_swin_nano", pretrained=True)


@pytest.mark.parametrize("name", FORMS)
def test_checkpoints_in_both_directions(name: str, tmp_path: Path) -> None:
    trained = ours(name).eval()
    path = saved(trained, tmp_path / "ours.safetensors")
    model = in_timm(name, drop_path_rate=0.1, checkpoint_path=path).eval()
    assert torch.equal(model(photos()), trained(photos()))
    model.reset_classifier(2)
    loaded = lipsformer.load_checkpoint(saved(model, tmp_path / "timm.safetensors")).model
    assert torch.equal(loaded(photos()), model(photos()))


def saved(model: LipsFormer, path: Path) -> Path:
    classes = [f"class {number}" for number in range(model.config.num_classes)]
    lipsformer.save_checkpoint(
        path,
        config=model.config,
        weights=model.state_dict(),
        classes=classes,
        preprocessing=lipsformer.Preprocessing(image_size=SIDE),
        metrics={},
    )
    return path


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"in_chans": 1}, "in_chans=1: LipsFormer takes RGB"),
        ({"img_size": (64, 32)}, "square images; use img_size=32"),
        ({"img_size": 72}, "image_size=72 cannot be tiled"),
        ({"global_pool": "max"}, "global_pool='max': use 'avg'"),
        ({"image_size": 64}, "image_size: here the setting has timm's name, img_size"),
        ({"drop_path": 0.1}, "timm's name, drop_path_rate"),
        ({"windowsize": 4}, "unknown model setting 'windowsize': did you mean 'window_size'?"),
        ({"num_classes": -1}, "num_classes"),
        ({"drop_path_rate": 1.0}, "drop_path"),
    ],
)
def test_wrong_arguments_are_one_line(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(lipsformer.InputError, match=re.escape(message)) as error:
        timm.create_model("lipsformer_swin_nano", **kwargs)
    assert "\n" not in str(error.value)


def test_precision_and_device() -> None:
    model = timm.create_model("lipsformer_swin_nano", img_size=SIDE, dtype=torch.bfloat16, device="cpu", **SMALL)
    model.reset_classifier(4)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model(photos().bfloat16()).shape == (3, 4)


def test_the_program_of_the_documentation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    section = DOCUMENT.read_text(encoding="utf-8").split("## Use from timm")[1]
    (program,) = re.findall(r"```python\n(.*?)```", section.split("\n## ")[0], re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(program, names)  # noqa: S102 - our own documentation
    assert [tuple(found.shape) for found in names["maps"]] == [(8, 64, 8, 8), (8, 128, 4, 4), (8, 256, 2, 2)]
    loaded = lipsformer.load_checkpoint("flowers.safetensors")
    names["model"].eval()
    assert torch.equal(loaded.model(names["images"]), names["model"](names["images"]))
    assert loaded.preprocessing.crop_pct == 1.0
