"""Conversion of official LipsFormer checkpoints (the Swin form) to ours, with every tensor accounted for."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lipsformer.bundle.class_names import read_classes
from lipsformer.images.preprocessing import Preprocessing
from lipsformer.model.config import IMAGE_SIZES, STAGES, ModelConfig, SwinConfig, nearest, ways
from lipsformer.model.factory import build_model
from lipsformer.model.swin import relative_position_index
from lipsformer.system.errors import InputError

from .official import OfficialCheckpoint, read_official
from .save import save_checkpoint

__all__ = ["Conversion", "convert"]

USUAL_IMAGE_SIZE = 224
SHOWN = 3  # names of tensors in a message
# The official code builds a 1x1 convolution even in blocks without depthwise branches, where nothing calls it.
IDLE = re.compile(r"layers\.\d+\.blocks\.\d+\.nin\.(weight|bias)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conversion:
    """The result of a conversion, as plain data.

    `part` is the entry of the file that the weights came from (None if the file has nothing but weights), `dropped` the
    buffers and entries that our checkpoint does not keep, `notes` the differences from the official evaluation.
    """

    checkpoint: str
    part: str | None
    model: dict[str, Any]
    parameters: int
    classes: tuple[str, ...]
    preprocessing: dict[str, Any]
    metrics: dict[str, int | float]
    dropped: tuple[str, ...]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        return "; ".join(
            [
                f"{self.checkpoint}: {self.model['architecture']} with {self.parameters:,} parameters for "
                f"{self.model['image_size']} px and {len(self.classes)} classes",
                f"from '{self.part}'" if self.part else "from a bare state dict",
                f"dropped: {', '.join(self.dropped) or 'nothing'}",
                *self.notes,
            ]
        )


def convert(
    path: Path,
    output: Path,
    *,
    image_size: int | None = None,
    classes: Path | None = None,
    expected: ModelConfig | None = None,
) -> Conversion:
    """Converts the official checkpoint at `path` and writes ours to `output`, atomically.

    The configuration is inferred from the shapes. Where they leave the image size open, it is `image_size`, else the
    one in the file's configuration, else 224. `classes` is a file of class names, one per line or a JSON list; by
    default they are "class 0" and so on. Preprocessing is that of the official evaluation (data/build.py): shorter side
    to 256/224 of the image size, bicubic, center crop, ImageNet's mean and standard deviation.

    Raises:
        InputError: if the file is not such a checkpoint, names foreign code, has unknown or missing tensors, has
            another configuration than the `expected` one, or contradicts itself or the arguments; the message says how
            to continue.
    """
    if output.suffix != ".safetensors":
        raise InputError(f"--output {output}: checkpoints are .safetensors files; give a name with that ending")
    found = read_official(path)
    try:
        config = infer_config(found, image_size)
        if expected is not None and config != expected:
            raise InputError(f"another network: {_differences(config, expected)}")
        weights, dropped = account(found.weights, config)
        preprocessing, notes = official_preprocessing(found, config.image_size)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    names = tuple(f"class {index}" for index in range(config.num_classes))
    if classes is not None:
        names = read_classes(classes, config.num_classes)
    save_checkpoint(
        output, config=config, weights=weights, classes=names, preprocessing=preprocessing, metrics=found.metrics
    )
    return Conversion(
        checkpoint=str(output),
        part=found.part,
        model=config.to_dict(),
        parameters=sum(tensor.numel() for tensor in weights.values()),
        classes=names,
        preprocessing=preprocessing.to_dict(),
        metrics=found.metrics,
        dropped=(*dropped, *found.left),
        notes=notes,
    )


def infer_config(found: OfficialCheckpoint, image_size: int | None = None) -> SwinConfig:
    """The configuration of official weights, inferred from their shapes.

    Raises:
        InputError: if a tensor that it depends on is missing, the image size stays open, or the shapes contradict
            `image_size` or the file's configuration.
    """
    weights = found.weights
    tables = [
        _shape(weights, f"layers.{stage}.blocks.0.attn.relative_position_bias_table", 2) for stage in range(STAGES)
    ]
    windows = [_window(rows) for rows, _ in tables]
    embed_dim, _, patch_size, _ = _shape(weights, "patch_embed.proj.weight", 4)
    num_classes, _ = _shape(weights, "head.weight", 2)
    hidden, dim = _shape(weights, f"layers.{STAGES - 1}.blocks.0.mlp.fc1.weight", 2)
    config = SwinConfig(
        image_size=infer_image_size(patch_size, windows, asked=image_size, recorded=found.setting("DATA.IMG_SIZE")),
        patch_size=patch_size,
        num_classes=num_classes,
        embed_dim=embed_dim,
        depths=tuple(_count(weights, rf"layers\.{stage}\.blocks\.(\d+)\..*") for stage in range(STAGES)),
        num_heads=tuple(heads for _, heads in tables),
        mlp_ratio=_ratio(hidden, dim),
        window_size=max(windows),
        conv_branches=_count(weights, r"layers\.0\.blocks\.0\.dwconv_layers\.(\d+)\..*"),
    )
    _check_settings(found, config)
    return config


def infer_image_size(patch_size: int, windows: list[int], *, asked: int | None, recorded: Any) -> int:
    """The image size, in pixels, of a network whose stages have these `windows`.

    A stage whose map is smaller than the window uses the whole map, which determines the size. Otherwise it is what the
    user `asked` for, else what the file `recorded`, else the only size that fits, else 224 if that fits.

    Raises:
        InputError: if no size fits, the sources contradict each other, or the size stays open.
    """
    fitting = [size for size in IMAGE_SIZES if _fits(size, patch_size, windows)]
    if not fitting:
        raise InputError(
            f"windows of {windows} tokens on patches of {patch_size} px fit no image of "
            f"{IMAGE_SIZES[0]} to {IMAGE_SIZES[-1]} px"
        )
    some = nearest(asked or USUAL_IMAGE_SIZE, fitting)
    if asked is not None and asked not in fitting:
        raise InputError(f"--image-size {asked} contradicts the shapes of its weights; {ways(image_size=some)}")
    if recorded is not None and recorded not in fitting:
        sizes = " or ".join(map(str, some))
        raise InputError(f"its configuration has DATA.IMG_SIZE {recorded}, but the shapes of its weights say {sizes}")
    if asked is not None and recorded is not None and asked != recorded:
        raise InputError(f"--image-size {asked}, but it was trained at {recorded}; leave --image-size out")
    if asked is not None or recorded is not None:
        return int(recorded if asked is None else asked)
    if len(fitting) > 1 and USUAL_IMAGE_SIZE not in fitting:
        sizes = " or ".join(map(str, some))
        raise InputError(f"{len(fitting)} image sizes fit its weights; give --image-size, such as {sizes}")
    return fitting[0] if len(fitting) == 1 else USUAL_IMAGE_SIZE


def account(weights: Mapping[str, Tensor], config: SwinConfig) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The state dict of `config`'s model from official weights, in float32, and the names of dropped buffers.

    Raises:
        InputError: if a tensor is unknown, missing, of the wrong shape or type, or not finite.
    """
    for name, tensor in weights.items():
        # Strides of 0 make a huge tensor out of a few stored numbers.
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise InputError(f"{name} has {tensor.numel():,} elements, more than the file has numbers for")
    with torch.device("meta"):
        needed = {name: tensor.shape for name, tensor in build_model(config).state_dict().items()}
    indices = [name for name in weights if name.endswith(".attn.relative_position_index")]
    idle = [name for name in weights if config.conv_branches == 0 and IDLE.fullmatch(name)]
    if masks := [name for name in weights if name.endswith(".attn_mask")]:
        raise InputError(f"it has {masks[0]}: its blocks shift their windows, which LipsFormer's do not")
    for name in indices:
        _check_index(name, weights)
    present = weights.keys() - {*indices, *idle}
    problems = [
        _several("unknown", sorted(present - needed.keys())),
        _several("missing", sorted(needed.keys() - present)),
        _several(
            "of another shape",
            [
                f"{name} is {list(weights[name].shape)}, needed {list(needed[name])}"
                for name in sorted(present & needed.keys())
                if weights[name].shape != needed[name]
            ],
        ),
    ]
    if any(problems):
        raise InputError(f"not the weights of a LipsFormer of the Swin form: {'; '.join(filter(None, problems))}")
    dropped = [f"{len(names)} {what}" for names, what in ((indices, "relative_position_index"), (idle, "nin")) if names]
    return {name: _value(name, weights[name]) for name in needed}, tuple(dropped)


def official_preprocessing(found: OfficialCheckpoint, image_size: int) -> tuple[Preprocessing, tuple[str, ...]]:
    """The preprocessing of the official evaluation, and notes on where ours differs."""
    interpolation = str(found.setting("DATA.INTERPOLATION") or "bicubic")
    if found.setting("TEST.CROP") is False:
        note = "its evaluation squeezed images to a square; ours uses their whole central square"
        return Preprocessing(image_size=image_size, crop_pct=1.0, interpolation=interpolation), (note,)
    # A fraction of the official side, rounded down as there, so that ours is equal. Up to 32 px nothing is resized.
    side = int(256 / 224 * image_size) if image_size > 32 else image_size
    return Preprocessing(image_size=image_size, crop_pct=image_size / side, interpolation=interpolation), ()


def _check_settings(found: OfficialCheckpoint, config: SwinConfig) -> None:
    """Compares the configuration in the file with the one inferred from its shapes."""
    for name, value in (
        ("MODEL.NUM_CLASSES", config.num_classes),
        ("MODEL.SWIN.PATCH_SIZE", config.patch_size),
        ("MODEL.SWIN.EMBED_DIM", config.embed_dim),
        ("MODEL.SWIN.DEPTHS", list(config.depths)),
        ("MODEL.SWIN.NUM_HEADS", list(config.num_heads)),
        ("MODEL.SWIN.WINDOW_SIZE", config.window_size),
    ):
        recorded = found.setting(name)
        # A window wider than every map leaves no trace in the shapes.
        hidden = name.endswith("WINDOW_SIZE") and config.window_size == config.resolution(0)
        if recorded is not None and recorded != value and not hidden:
            raise InputError(f"its configuration has {name} {recorded}, but the shapes of its weights say {value}")


def _differences(config: SwinConfig, expected: ModelConfig) -> str:
    found, needed = config.to_dict(), expected.to_dict()
    return ", ".join(
        f"{name} is {found.get(name)}, not {value}" for name, value in needed.items() if found.get(name) != value
    )


def _shape(weights: Mapping[str, Tensor], name: str, dimensions: int) -> torch.Size:
    tensor = weights.get(name)
    if tensor is None or tensor.ndim != dimensions or 0 in tensor.shape:
        some = ", ".join(list(weights)[:SHOWN])
        raise InputError(
            f"no {name} of {dimensions} dimensions, so not a LipsFormer of the Swin form (it has {some}, ...)"
        )
    return tensor.shape


def _window(rows: int) -> int:
    side = math.isqrt(rows)
    if side**2 != rows or side % 2 == 0:
        raise InputError(f"a relative_position_bias_table of {rows} rows belongs to no square window")
    return (side + 1) // 2


def _ratio(hidden: int, dim: int) -> float:
    """The MLP's ratio, from the last stage: the widest, so that rounding down is correct in the others too."""
    ratio = hidden / dim
    return ratio if int(dim * ratio) == hidden else math.nextafter(ratio, math.inf)


def _fits(image_size: int, patch_size: int, windows: list[int]) -> bool:
    """Whether windows tile the map of each stage; where the map is smaller than the largest, it is the window."""
    sides = [image_size // patch_size >> stage for stage in range(STAGES)]
    cut = all(w == min(max(windows), side) and side % w == 0 for w, side in zip(windows, sides, strict=True))
    return cut and image_size % (patch_size << STAGES - 1) == 0


def _count(weights: Mapping[str, Tensor], pattern: str) -> int:
    """The number of different values of the group of `pattern` among the names."""
    return len({match[1] for name in weights if (match := re.fullmatch(pattern, name))})


def _check_index(name: str, weights: Mapping[str, Tensor]) -> None:
    table = weights.get(name.removesuffix("index") + "bias_table")
    if table is None or table.ndim != 2:
        raise InputError(f"{name} has no relative_position_bias_table next to it")
    window, index = _window(table.shape[0]), weights[name]
    if index.shape != (window**2, window**2) or not bool((index == relative_position_index(window)).all()):
        raise InputError(f"{name} is not the usual one for a window of {window} tokens; this is a different network")


def _several(what: str, items: list[str]) -> str:
    more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return f"{len(items)} {what}: {', '.join(items[:SHOWN])}{more}" if items else ""


def _value(name: str, tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        raise InputError(f"{name} has {tensor.dtype} values, not floating-point numbers")
    value = tensor.to(torch.float32, copy=True).contiguous()  # copied: safetensors refuses tensors that share memory
    if not bool(value.isfinite().all()):
        raise InputError(f"{name} has values that are not finite in float32; training diverged, or the file is damaged")
    return value
