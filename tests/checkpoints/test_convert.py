"""Official checkpoints convert with the same outputs; nothing in them is run, guessed or lost."""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
import types
import zipfile
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lipsformer import cli
from lipsformer.checkpoints.checkpoint import load_checkpoint
from lipsformer.checkpoints.convert import convert
from lipsformer.images.samples import SAMPLES
from lipsformer.model.config import SwinConfig
from lipsformer.system.errors import InputError
from tests.support.models.official_forward import official_forward

MIRROR = Path(__file__).parents[3] / ".mirror" / "IDEA-Research+LipsFormer" / "repo"
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}

# The last two maps are smaller than the window: the shapes fix the image size.
FIXED = SwinConfig(
    image_size=64, window_size=8, embed_dim=8, depths=(1, 2, 1, 1), num_heads=(1, 2, 2, 4), num_classes=3
)
# Every map is a multiple of the window: images of 96, 192 and 288 px fit, and 384.
OPEN = SwinConfig(
    image_size=192, window_size=3, embed_dim=10, depths=(1, 1, 2, 1), num_heads=(1, 2, 5, 5), num_classes=5,
    mlp_ratio=2.7,
)  # fmt: skip


def official_state(config: SwinConfig, seed: int = 0) -> dict[str, Tensor]:
    """Random weights with the names, shapes and buffers of the official code, written down from that code."""
    dim, patch = config.embed_dim, config.patch_size
    shapes: dict[str, tuple[int, ...]] = {"patch_embed.proj.weight": (dim, 3, patch, patch)}
    shapes["patch_embed.proj.bias"] = (dim,)
    vectors = {"patch_embed.norm.weight": dim, "patch_embed.norm.bias": dim}
    indices = {}
    for stage, (depth, heads) in enumerate(zip(config.depths, config.num_heads, strict=True)):
        window = min(config.window_size, config.image_size // patch >> stage)
        hidden = int(dim * config.mlp_ratio)
        for block in range(depth):
            name = f"layers.{stage}.blocks.{block}"
            shapes[f"{name}.attn.relative_position_bias_table"] = ((2 * window - 1) ** 2, heads)
            indices[f"{name}.attn.relative_position_index"] = position_index(window)
            shapes |= {f"{name}.attn.qkv.weight": (3 * dim, dim), f"{name}.attn.proj.weight": (dim, dim)}
            shapes |= {f"{name}.mlp.fc1.weight": (hidden, dim), f"{name}.mlp.fc2.weight": (dim, hidden)}
            vectors |= {f"{name}.attn.qkv.bias": 3 * dim, f"{name}.mlp.fc1.bias": hidden}
            own = ("attn.proj.bias", "mlp.fc2.bias", "norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias")
            vectors |= {f"{name}.{part}": dim for part in (*own, "alpha1.scale", "alpha2.scale", "nin.bias")}
            shapes[f"{name}.nin.weight"] = (dim, dim, 1, 1)
            for branch in range(2):
                shapes[f"{name}.dwconv_layers.{branch}.weight"] = (dim, 1, 7, 7)
                vectors |= {f"{name}.dwconv_layers.{branch}.bias": dim, f"{name}.scale_layers.{branch}.scale": dim}
        if stage < 3:
            shapes[f"layers.{stage}.downsample.reduction.weight"] = (2 * dim, 4 * dim)
            vectors |= {f"layers.{stage}.downsample.norm.{part}": 4 * dim for part in ("weight", "bias")}
            dim *= 2
    vectors |= {"norm.weight": dim, "norm.bias": dim, "head.bias": config.num_classes}
    shapes |= {"head.weight": (config.num_classes, dim)} | {name: (size,) for name, size in vectors.items()}
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) * 0.2 for name, shape in shapes.items()} | indices


def position_index(window: int) -> Tensor:
    places = list(product(range(window), repeat=2))
    return torch.tensor(
        [[(i - k + window - 1) * (2 * window - 1) + j - m + window - 1 for k, m in places] for i, j in places]
    )


@pytest.fixture
def config_node(monkeypatch: pytest.MonkeyPatch) -> Callable[[Mapping[str, Any]], Any]:
    """Makes what pickles as a yacs configuration; `monkeypatch.undo` takes the module away again."""

    class CfgNode(dict[str, Any]):
        def __init__(self, entries: Mapping[str, Any]) -> None:
            super().__init__({k: CfgNode(v) if isinstance(v, dict) else v for k, v in entries.items()})
            self.__dict__ |= {"__immutable__": True, "__deprecated_keys__": set(), "__new_allowed__": False}

        def __getattr__(self, name: str) -> Any:
            if name in self:
                return self[name]
            raise AttributeError(name)

    CfgNode.__module__, CfgNode.__qualname__ = "yacs.config", "CfgNode"
    module = types.ModuleType("yacs.config")
    module.CfgNode = CfgNode  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
    monkeypatch.setitem(sys.modules, "yacs.config", module)
    return CfgNode


def settings_of(config: SwinConfig) -> dict[str, Any]:
    """The configuration as the official code holds it."""
    return {
        "DATA": {"IMG_SIZE": config.image_size, "INTERPOLATION": "bicubic"},
        "MODEL": {
            "NUM_CLASSES": config.num_classes,
            "PRETRAINED": None,
            "SWIN": {
                "PATCH_SIZE": config.patch_size,
                "EMBED_DIM": config.embed_dim,
                "DEPTHS": list(config.depths),
                "NUM_HEADS": list(config.num_heads),
                "WINDOW_SIZE": config.window_size,
                "MLP_RATIO": config.mlp_ratio,
            },
        },
        "TRAIN": {"OPTIMIZER": {"BETAS": (0.9, 0.98)}},
        "TEST": {"CROP": True},
    }


def adamw_state() -> dict[str, Any]:
    layer = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW([{"params": [layer.weight]}, {"params": [layer.bias], "weight_decay": 0.0}])
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


def saved(tmp_path: Path, content: object, **options: Any) -> Path:
    torch.save(content, tmp_path / "official.pth", **options)
    return tmp_path / "official.pth"


def reason(path: Path, **options: Any) -> str:
    """Why a file is refused: one line, and nothing is written."""
    output = path.parent / "refused.safetensors"
    with pytest.raises(InputError) as error:
        convert(path, output, **options)
    assert not output.exists()
    assert "\n" not in str(error.value)
    return str(error.value)


@torch.no_grad()
def check_outputs(output: Path, state: Mapping[str, Tensor], config: SwinConfig) -> None:
    loaded = load_checkpoint(output)
    assert isinstance(loaded.config, SwinConfig)
    assert loaded.config.replace(mlp_ratio=config.mlp_ratio) == config
    image = torch.randn(2, 3, config.image_size, config.image_size, generator=torch.Generator().manual_seed(1))
    features, logits = official_forward(
        state,
        image,
        patch=config.patch_size,
        window=config.window_size,
        depths=config.depths,
        heads=config.num_heads,
    )
    assert features.std() > 1e-3
    torch.testing.assert_close(loaded.model.forward_features(image), features, **TOLERANCE)
    torch.testing.assert_close(loaded.model(image), logits, **TOLERANCE)


# Same outputs


@torch.no_grad()
def test_the_official_micro_checkpoint_gives_its_outputs(reference: Path, tmp_path: Path) -> None:
    conversion = convert(reference / "official_swin_micro.pth", tmp_path / "micro.safetensors")
    assert (conversion.part, conversion.dropped) == ("model", ("5 relative_position_index",))
    loaded = load_checkpoint(tmp_path / "micro.safetensors")
    assert loaded.config == SwinConfig(
        image_size=64, window_size=4, embed_dim=32, depths=(1, 1, 2, 1), num_heads=(1, 2, 4, 8), num_classes=10
    )
    with np.load(reference / "official_swin_micro_io.npz") as data:
        image, features, logits = (torch.from_numpy(data[name]) for name in ("x", "features", "logits"))
    torch.testing.assert_close(loaded.model.forward_features(image), features, rtol=0, atol=1e-5)
    torch.testing.assert_close(loaded.model(image), logits, rtol=0, atol=1e-5)


def test_a_bare_state_dict_gives_the_official_outputs(tmp_path: Path) -> None:
    state = official_state(FIXED)
    conversion = convert(saved(tmp_path, state), tmp_path / "ours.safetensors")
    assert conversion.part is None
    assert conversion.parameters == sum(t.numel() for name, t in state.items() if "index" not in name)
    check_outputs(tmp_path / "ours.safetensors", state, FIXED)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_a_whole_training_checkpoint_gives_the_official_outputs(
    tmp_path: Path, config_node: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, zipped: bool
) -> None:
    state = official_state(OPEN)
    content = {
        "model": {f"module.{name}": nn.Parameter(t) if t.is_floating_point() else t for name, t in state.items()},
        "optimizer": adamw_state(),
        "lr_scheduler": {"base_values": [5e-4, 5e-4], "metric": None},
        "max_accuracy": 82.7,
        "epoch": 299,
        "config": config_node(settings_of(OPEN)),
    }
    path = saved(tmp_path, content, _use_new_zipfile_serialization=zipped)
    monkeypatch.undo()
    assert "yacs.config" not in sys.modules
    conversion = convert(path, tmp_path / "ours.safetensors")
    assert conversion.part == "model"
    assert conversion.dropped == ("5 relative_position_index", "optimizer", "lr_scheduler")
    assert load_checkpoint(tmp_path / "ours.safetensors").metrics == {"max_accuracy": 82.7, "epoch": 299}
    check_outputs(tmp_path / "ours.safetensors", state, OPEN)


@pytest.mark.parametrize("branches", [0, 1])
def test_fewer_convolution_branches_are_inferred(tmp_path: Path, branches: int) -> None:
    state = official_state(FIXED)
    silent = re.compile(rf"scale_layers\.[{'01'[branches:]}]\.scale")  # a branch scaled by 0 is no branch
    state = {name: torch.zeros_like(t) if silent.search(name) else t for name, t in state.items()}
    absent = re.compile(rf"(scale|dwconv)_layers\.[{'01'[branches:]}]\.")
    path = saved(tmp_path, {name: t for name, t in state.items() if not absent.search(name)})
    conversion = convert(path, tmp_path / "ours.safetensors")
    assert ("10 nin" in conversion.dropped) == (branches == 0)
    check_outputs(tmp_path / "ours.safetensors", state, FIXED.replace(conv_branches=branches))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("config", [FIXED, OPEN.replace(image_size=96)], ids=["fixed", "open"])
@torch.no_grad()
def test_the_public_code_itself_gives_the_same_outputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: SwinConfig
) -> None:
    if not MIRROR.is_dir():
        pytest.skip(f"no {MIRROR}: the official code is not part of a clone")
    source = subprocess.run(
        ["git", "-C", MIRROR, "show", "HEAD:models/lipsformer_swin.py"], capture_output=True, text=True, check=True
    ).stdout
    layers = types.ModuleType("timm.models.layers")
    layers.__dict__.update(DropPath=None, to_2tuple=lambda x: (x, x), trunc_normal_=nn.init.trunc_normal_)
    for name in ("timm", "timm.models"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "timm.models.layers", layers)
    code: dict[str, Any] = {"__name__": "official_code"}
    exec(compile(source, "lipsformer_swin.py", "exec"), code)  # noqa: S102
    sizes = {name: getattr(config, name) for name in ("patch_size", "num_classes", "embed_dim", "window_size")}
    sizes |= {name: getattr(config, name) for name in ("depths", "num_heads", "mlp_ratio")}
    torch.manual_seed(0)
    model = code["LipsFormerSwin"](img_size=config.image_size, drop_path_rate=0.0, **sizes).eval()
    for parameter in model.parameters():  # biases, scales and tables start at constants, which would hide a mix-up
        parameter.copy_(torch.randn_like(parameter) * 0.2)
    assert {name: t.shape for name, t in model.state_dict().items()} == {
        name: t.shape for name, t in official_state(config).items()
    }
    convert(saved(tmp_path, model.state_dict()), tmp_path / "ours.safetensors", image_size=config.image_size)
    ours = load_checkpoint(tmp_path / "ours.safetensors").model
    image = torch.randn(2, 3, config.image_size, config.image_size)
    torch.testing.assert_close(ours.forward_features(image), model.forward_features(image), **TOLERANCE)
    torch.testing.assert_close(ours(image), model(image), **TOLERANCE)


@pytest.mark.slow
def test_the_official_tiny_names_and_shapes_convert(reference: Path, tmp_path: Path) -> None:
    shapes = json.loads((reference / "official_swin_tiny_keys.json").read_text(encoding="utf-8"))
    state = {
        name: position_index(7) if name.endswith("index") else torch.randn(shape) for name, shape in shapes.items()
    }
    conversion = convert(saved(tmp_path, {"state_dict": state}), tmp_path / "tiny.safetensors")
    assert (conversion.part, conversion.parameters) == ("state_dict", 30_908_578)
    assert load_checkpoint(tmp_path / "tiny.safetensors").config == SwinConfig()


# Nothing is run


class Malicious:
    """Pickles as a call of os.system."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (self.command,)


@pytest.mark.parametrize("form", ["protocol 0", "protocol 2", "protocol 4", "zip", "optimizer", "before torch 1.6"])
def test_foreign_code_is_named_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    marker = tmp_path / "marker"
    bad = Malicious(f"touch {marker}")
    path = tmp_path / "official.pth"
    if form.startswith("protocol"):
        path.write_bytes(pickle.dumps({"model": bad}, protocol=int(form[-1])))
    elif form == "optimizer":
        saved(tmp_path, {"model": official_state(FIXED), "optimizer": bad})
    else:
        saved(tmp_path, {"model": bad}, _use_new_zipfile_serialization=form == "zip")
    output = tmp_path / "ours.safetensors"
    monkeypatch.setattr(sys, "argv", ["lipsformer", "convert", str(path), "--output", str(output)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    captured = capsys.readouterr()
    assert stop.value.code == 2
    assert captured.out == ""
    # torch.save writes protocol 2; torch reads no other, and nothing of the file is looked at any further.
    problem = (
        "not a checkpoint that torch.save wrote"
        if form in ("protocol 0", "protocol 4")
        else "its pickle names posix.system"
    )
    assert captured.err.startswith(f"lipsformer: {path}: {problem}")
    assert captured.err.count("\n") == 1
    assert not marker.exists()
    assert not output.exists()
    # The file is dangerous indeed: reading it the ordinary way runs the command.
    if form.startswith("protocol"):
        pickle.loads(path.read_bytes())  # noqa: S301
    else:
        torch.load(path, weights_only=False)
    assert marker.exists()


def test_what_a_configuration_brings_along_is_not_called(
    tmp_path: Path, config_node: Callable[[Mapping[str, Any]], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pickle may give the stand-in of a CfgNode attributes; one in the place of a method must not be called."""
    node = config_node(settings_of(FIXED))
    node.__dict__ |= {"get": torch.device, "keys": torch.device}
    path = saved(tmp_path, {"model": official_state(FIXED), "config": node})
    monkeypatch.undo()
    assert convert(path, tmp_path / "ours.safetensors").model["image_size"] == FIXED.image_size


def test_a_record_that_only_torch_finds_is_searched_too(tmp_path: Path) -> None:
    path = saved(tmp_path, {"model": {"a": Malicious("true")}})
    path.write_bytes(path.read_bytes().replace(b"/data.pkl", b"/DATA.PKL"))
    assert "its pickle names posix.system" in reason(path)


def test_tensors_of_which_the_file_holds_no_numbers_are_refused(tmp_path: Path) -> None:
    """In the format before torch 1.6 the storages' numbers follow a list of their keys; torch trusts that list."""
    path = saved(tmp_path, official_state(FIXED), _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    keys = pickle.dumps([], protocol=2)
    start = data.rindex(b"\x80\x02]")  # the list
    path.write_bytes(data[:start] + keys)
    assert "is the file whole?" in reason(path)


@pytest.mark.parametrize(
    "name", ["torch.hub.load", "builtins.eval", "yacs.config.load_cfg", "numpy.core.multiarray.scalar"]
)
def test_whatever_else_a_pickle_names_is_refused(tmp_path: Path, name: str) -> None:
    module, _, attribute = name.rpartition(".")
    with zipfile.ZipFile(saved(tmp_path, {"model": {"a": torch.ones(1)}})) as archive:
        entries = {member: archive.read(member) for member in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "official.pth", "w") as archive:
        for member, data in entries.items():
            archive.writestr(member, f"c{module}\n{attribute}\n.".encode() if member.endswith("data.pkl") else data)
    assert f"its pickle names {name}" in reason(tmp_path / "official.pth")


def test_torch_guards_what_the_scan_overlooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = tmp_path / "marker"
    path = saved(tmp_path, {"model": Malicious(f"touch {marker}")})
    monkeypatch.setattr("lipsformer.checkpoints.official._named_globals", lambda path: set())
    assert "not a checkpoint" in reason(path)
    assert not marker.exists()


# Files that are something else


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04", b"\x89PNG\r\n", b"class 0\nclass 1\n", pickle.dumps({"model": 1})]
)
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "official.pth"
    path.write_bytes(content)
    assert "is the file whole?" in reason(path)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.99])
def test_a_file_cut_off_is_refused(tmp_path: Path, zipped: bool, kept: float) -> None:
    path = saved(tmp_path, official_state(FIXED), _use_new_zipfile_serialization=zipped)
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    assert "is the file whole?" in reason(path)


def test_a_file_that_unpacks_to_more_than_its_size_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, {"model": {"a": torch.zeros(1_000_000)}})
    with zipfile.ZipFile(path) as archive:
        entries = {member: archive.read(member) for member in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, data in entries.items():
            archive.writestr(member, data)
    assert path.stat().st_size < 100_000
    assert "is the file whole?" in reason(path)


def test_a_missing_file_and_a_wrong_output_are_refused(tmp_path: Path) -> None:
    assert "no such file" in reason(tmp_path / "nothing.pth")
    with pytest.raises(InputError, match=r"\.safetensors"):
        convert(saved(tmp_path, official_state(FIXED)), tmp_path / "ours.pth")


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, {"model": {}}, [1], {"model": [torch.ones(1)]}])
def test_a_file_without_weights_is_refused(tmp_path: Path, content: object) -> None:
    assert "no weights in it" in reason(saved(tmp_path, content))


# Weights that are something else

QKV = "layers.0.blocks.0.attn.qkv.bias"
INDEX = "layers.1.blocks.0.attn.relative_position_index"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (QKV, torch.full((24,), torch.nan), f"{QKV} has values that are not finite"),
        (QKV, torch.full((24,), 1e300, dtype=torch.float64), f"{QKV} has values that are not finite"),
        (QKV, torch.ones(24, dtype=torch.int64), f"{QKV} has torch.int64 values"),
        (QKV, torch.ones(1).expand(10**12), f"{QKV} has 1,000,000,000,000 elements"),
        (QKV, torch.ones(23), f"1 of another shape: {QKV} is [23], needed [24]"),
        ("head.weight", torch.ones(3), "no head.weight of 2 dimensions"),
        ("absolute_pos_embed", torch.ones(1, 256, 8), "1 unknown: absolute_pos_embed"),
        ("layers.0.blocks.0.attn_mask", torch.zeros(4, 64, 64), "shift their windows"),
        ("layers.0.blocks.7.norm1.bias", torch.ones(8), "layers.0.blocks.7.norm1.bias"),
        (INDEX, position_index(8).flip(0), f"{INDEX} is not the usual one"),
        (INDEX, position_index(4), f"{INDEX} is not the usual one"),
        (INDEX.replace("1", "9"), position_index(8), "no relative_position_bias_table next to it"),
        ("layers.0.blocks.0.attn.relative_position_bias_table", torch.ones(224, 1), "no square window"),
        ("layers.3.blocks.0.attn.relative_position_bias_table", torch.ones(1, 4), "fit no image"),
        ("layers.0.blocks.0.dwconv_layers.2.weight", torch.ones(8, 1, 7, 7), "conv_branches=3"),
    ],
)
def test_weights_that_cannot_be_taken_are_named(tmp_path: Path, name: str, value: Tensor, message: str) -> None:
    path = saved(tmp_path, official_state(FIXED) | {name: value})
    assert message in reason(path)


def test_missing_and_unknown_names_are_counted(tmp_path: Path) -> None:
    state = official_state(FIXED)
    for block in ("layers.0.blocks.0", "layers.1.blocks.1"):
        for part in ("norm1.bias", "norm2.bias"):
            state[f"{block}.{part}".replace("norm", "layernorm")] = state.pop(f"{block}.{part}")
    message = reason(saved(tmp_path, state))
    assert "4 unknown: layers.0.blocks.0.layernorm1.bias, " in message
    assert "4 missing: layers.0.blocks.0.norm1.bias, " in message
    assert message.count(" and 1 more") == 2


def test_an_inexact_mlp_ratio_still_gives_its_hidden_channels(tmp_path: Path) -> None:
    config = FIXED.replace(embed_dim=7, num_heads=(1, 1, 1, 1), mlp_ratio=1.09)
    assert int(56 * 1.09) == 61 != int(56 * (61 / 56))
    convert(saved(tmp_path, official_state(config)), tmp_path / "ours.safetensors")
    check_outputs(tmp_path / "ours.safetensors", official_state(config), config)


def test_half_precision_is_taken_as_it_is(tmp_path: Path) -> None:
    state = {n: t.half() if t.is_floating_point() else t for n, t in official_state(FIXED).items()}
    convert(saved(tmp_path, state), tmp_path / "ours.safetensors")
    ours = load_checkpoint(tmp_path / "ours.safetensors").model.state_dict()
    assert all(torch.equal(tensor, state[name].float()) for name, tensor in ours.items())


# The image size, and what the file says of itself


@pytest.mark.parametrize(
    ("config", "recorded", "asked", "size"),
    [
        (FIXED, None, None, 64),
        (FIXED, 64, 64, 64),
        (OPEN, None, 96, 96),
        (OPEN, 288, None, 288),
        (OPEN.replace(window_size=7, image_size=224), None, None, 224),
        (OPEN.replace(window_size=1), None, None, 224),
    ],
)
def test_the_image_size(tmp_path: Path, config: SwinConfig, recorded: int | None, asked: int | None, size: int) -> None:
    content = {"model": official_state(config), "config": {"DATA": {"IMG_SIZE": recorded}}}
    conversion = convert(saved(tmp_path, content), tmp_path / "ours.safetensors", image_size=asked)
    assert conversion.model["image_size"] == conversion.preprocessing["image_size"] == size


@pytest.mark.parametrize(
    ("config", "recorded", "asked", "message"),
    [
        (FIXED, None, 128, "--image-size 128 contradicts the shapes of its weights; use image_size 64"),
        (FIXED, 128, None, "DATA.IMG_SIZE 128, but the shapes of its weights say 64"),
        (OPEN, None, None, "give --image-size, such as 192 or 288"),
        (OPEN, None, 224, "--image-size 224 contradicts the shapes of its weights; use image_size 192 or 288"),
        (OPEN, 192, 96, "--image-size 96, but it was trained at 192"),
    ],
)
def test_an_open_or_contradictory_image_size_is_refused(
    tmp_path: Path, config: SwinConfig, recorded: int | None, asked: int | None, message: str
) -> None:
    content = {"model": official_state(config), "config": {"DATA": {"IMG_SIZE": recorded}}}
    assert message in reason(saved(tmp_path, content), image_size=asked)


@pytest.mark.parametrize(
    ("name", "value"), [("DEPTHS", [2, 2, 6, 2]), ("WINDOW_SIZE", 7), ("EMBED_DIM", 96), ("NUM_HEADS", [3, 6, 12, 24])]
)
def test_a_configuration_that_contradicts_the_shapes_is_refused(tmp_path: Path, name: str, value: object) -> None:
    settings = settings_of(FIXED)
    settings["MODEL"]["SWIN"][name] = value
    path = saved(tmp_path, {"model": official_state(FIXED), "config": settings})
    assert f"its configuration has MODEL.SWIN.{name} {value}" in reason(path)


def test_the_preprocessing_is_that_of_the_official_evaluation(tmp_path: Path) -> None:
    settings = settings_of(OPEN.replace(image_size=96))
    content = {"model": official_state(OPEN), "config": settings}
    convert(saved(tmp_path, content), tmp_path / "ours.safetensors")
    preprocessing = load_checkpoint(tmp_path / "ours.safetensors").preprocessing
    assert round(96 / preprocessing.crop_pct) == int(256 / 224 * 96) == 109
    assert (preprocessing.interpolation, preprocessing.mean[0], preprocessing.std[0]) == ("bicubic", 0.485, 0.229)
    settings["TEST"]["CROP"] = False
    conversion = convert(saved(tmp_path, content), tmp_path / "ours.safetensors")
    assert conversion.preprocessing["crop_pct"] == 1.0
    assert "squeezed" in str(conversion)


# Class names


@pytest.mark.parametrize(
    "text", ["pear\nred apple\r\nNashi\n", '["pear", "red apple", "Nashi"]', "﻿pear\nred apple\nNashi"]
)
def test_class_names_come_from_a_file(tmp_path: Path, text: str) -> None:
    names = tmp_path / "names.txt"
    names.write_bytes(text.encode())
    convert(saved(tmp_path, official_state(FIXED)), tmp_path / "ours.safetensors", classes=names)
    assert load_checkpoint(tmp_path / "ours.safetensors").classes == ("pear", "red apple", "Nashi")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"pear\napple", "2 class names for 3 outputs"),
        (b"pear\n\napple", "name 2 of 3 is empty"),
        (b'{"0": "pear"}', "1 class names for 3 outputs"),
        (b'["pear", 1, 2]', "not a list of strings"),
        (b'["pear", ', "no class names"),
        (b"\xff\xfe\xff", "no class names"),
    ],
)
def test_other_files_of_class_names_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    names = tmp_path / "names.txt"
    names.write_bytes(content)
    refusal = reason(saved(tmp_path, official_state(FIXED)), classes=names)
    assert message in refusal
    assert refusal.startswith(str(names))


# The command


def test_the_command_reports_and_its_result_predicts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, output = saved(tmp_path, {"model": official_state(FIXED), "amp": {}}), tmp_path / "ours.safetensors"

    def run(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["lipsformer", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        captured = capsys.readouterr()
        assert (stop.value.code, captured.err) == (0, "")
        return captured.out

    line = run("convert", path, "--output", output)
    assert line.count("\n") == 1
    for fact in ("lipsformer_swin", "64 px", "3 classes", "from 'model'", "5 relative_position_index, amp"):
        assert fact in line
    document = json.loads(run("convert", path, "--output", output, "--json"))
    assert document["model"] == json.loads(json.dumps(FIXED.to_dict()))
    assert document["classes"] == ["class 0", "class 1", "class 2"]
    (answer,) = json.loads(run("predict", output, SAMPLES / "Kaiser.jpg", "--json"))
    assert {p["label"] for p in answer["predictions"]} == {"class 0", "class 1", "class 2"}
