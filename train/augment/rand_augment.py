"""RandAugment (Cubuk et al. 2020) on batches: random photo-editing operations, each on a whole group of images at once.

The policy is timm's `rand-m9-mstd0.5-inc1`: two layers, each of which skips an image with probability 0.5, and
magnitudes around m. Every operation gets stronger with its magnitude. Each one matches Pillow's operation of its name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lipsformer.train.data.rng import PerImage

__all__ = ["OPERATIONS", "RandAugmentParams", "rand_augment", "sample_rand_augment"]

LAYERS = 2
PROBABILITY = 0.5  # that a layer changes an image
DEVIATION = 0.5  # of the magnitudes
MAX_MAGNITUDE = 10.0
FILL = (124.0, 116.0, 104.0)  # the mean color of ImageNet, shown where a geometric operation looks beyond the border

Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
Indices = np.ndarray[tuple[int, ...], np.dtype[np.int64]]
Run = Callable[[Tensor, Tensor], Tensor]
Argument = Callable[[Array, Array], Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandAugmentParams(PerImage):
    """The operations for each image of a batch, and their arguments.

    Attributes:
        operations: (B, 2) indices into `OPERATIONS`, -1 where a layer skips the image.
        arguments: (B, 2, 6) the six numbers of an affine map, or one number in the first column.
    """

    operations: Indices
    arguments: Array


def sample_rand_augment(rng: np.random.Generator, batch_size: int, magnitude: float) -> RandAugmentParams:
    """Random operations and arguments for `batch_size` images."""
    shape = (batch_size, LAYERS)
    operations = rng.integers(len(OPERATIONS), size=shape)
    operations[rng.random(shape) >= PROBABILITY] = -1
    strengths = np.clip(rng.normal(magnitude, DEVIATION, shape), 0, MAX_MAGNITUDE) / MAX_MAGNITUDE
    signs = np.where(rng.random(shape) < 0.5, -1.0, 1.0)
    arguments = np.zeros((*shape, 6))
    for index, operation in enumerate(OPERATIONS.values()):
        chosen = operations == index
        values = operation.argument(strengths[chosen], signs[chosen])
        arguments[chosen, : values.shape[-1]] = values
    return RandAugmentParams(operations=operations, arguments=arguments)


def rand_augment(pixels: Tensor, params: RandAugmentParams) -> Tensor:
    """Applies both layers to uint8 pixels (B, S, S, 3) and returns a copy.

    The CPU groups the images by operation from `params`, so the device never has to synchronize.
    """
    kinds = np.append(_KIND, -1)[params.operations]  # (B, 2); -1 finds the appended -1
    order = np.argsort(kinds, axis=0, kind="stable")
    sorted_kinds = np.take_along_axis(kinds, order, axis=0)
    sorted_arguments = np.take_along_axis(params.arguments, order[..., None], axis=0)
    indices = torch.from_numpy(order).to(pixels.device, non_blocking=True)
    arguments = torch.from_numpy(sorted_arguments).float().to(pixels.device, non_blocking=True)
    pixels = pixels.clone()
    for layer in range(LAYERS):
        bounds = np.searchsorted(sorted_kinds[:, layer], np.arange(len(_RUNS) + 1))
        for run, start, stop in zip(_RUNS, bounds, bounds[1:], strict=False):
            if start < stop:
                group = indices[start:stop, layer]
                pixels.index_copy_(0, group, run(pixels.index_select(0, group), arguments[start:stop, layer]))
    return pixels


def _planes(pixels: Tensor) -> Tensor:
    """uint8 (G, S, S, 3) to contiguous float (G, 3, S, S) in 0..255."""
    return pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)


def _pixels(planes: Tensor) -> Tensor:
    """Float (G, 3, S, S) in 0..255 to the nearest uint8 (G, S, S, 3)."""
    return (planes + 0.5).to(torch.uint8).permute(0, 2, 3, 1)


def _auto_contrast(pixels: Tensor, arguments: Tensor) -> Tensor:
    """Stretches each channel to 0..255. A flat channel stays as it is."""
    low, high = pixels.amin((1, 2), keepdim=True).float(), pixels.amax((1, 2), keepdim=True).float()
    stretched = (pixels - low) * 255 / (high - low).clamp(min=1)
    return torch.where(high > low, stretched.to(torch.uint8), pixels)


def _equalize(pixels: Tensor, arguments: Tensor) -> Tensor:
    """Equalizes each channel's histogram with Pillow's lookup table. A channel with too few levels stays as it is."""
    planes = pixels.permute(0, 3, 1, 2).flatten(2).flatten(0, 1)  # (3 G, S * S)
    levels = planes.long()
    counts = torch.zeros(len(planes), 256, device=pixels.device)  # whole numbers below 2**24: exact, and fast to add
    counts = counts.scatter_add_(1, levels, torch.ones_like(planes, dtype=counts.dtype)).long()
    below = counts.cumsum(1) - counts  # how many pixels are darker than each level
    step = below.gather(1, levels.amax(1, keepdim=True)) // 255
    equalized = ((below + step // 2) // step.clamp(min=1)).clamp(max=255)
    table = torch.where(step > 0, equalized, torch.arange(256, device=pixels.device)).to(torch.uint8)
    return table.gather(1, levels).view(-1, 3, *pixels.shape[1:3]).permute(0, 2, 3, 1)


def _invert(pixels: Tensor, arguments: Tensor) -> Tensor:
    return 255 - pixels


def _posterize(pixels: Tensor, arguments: Tensor) -> Tensor:
    return pixels & _per_image(arguments).to(torch.uint8)


def _solarize(pixels: Tensor, arguments: Tensor) -> Tensor:
    return torch.where(pixels < _per_image(arguments).to(torch.int16), pixels, 255 - pixels)


def _solarize_add(pixels: Tensor, arguments: Tensor) -> Tensor:
    """Brightens the dark half."""
    return torch.where(pixels < 128, pixels + _per_image(arguments).to(torch.uint8), pixels)


def _color(pixels: Tensor, arguments: Tensor) -> Tensor:
    """Blends with the gray image, plane by plane: twice as fast as pixel by pixel."""
    planes, factor = _planes(pixels), _per_image(arguments)
    gray = 0.299 * planes[:, :1] + 0.587 * planes[:, 1:2] + 0.114 * planes[:, 2:]
    return _pixels(((1 - factor) * gray + factor * planes).clamp(0, 255))


def _brightness(pixels: Tensor, arguments: Tensor) -> Tensor:
    return ((pixels * _per_image(arguments)).clamp(max=255) + 0.5).to(torch.uint8)


def _contrast(pixels: Tensor, arguments: Tensor) -> Tensor:
    """Blends with the mean gray level.

    The mean is computed in whole numbers: the last bits of a float sum depend on how many images the group has.
    """
    red, green, blue = pixels.int().unbind(-1)  # (G, S, S)
    gray = (red * 19595 + green * 38470 + blue * 7471 + 2**15) >> 16
    count = gray[0].numel()
    mean = (2 * gray.sum((1, 2)) + count) // (2 * count)  # rounded
    return _blend(mean[:, None, None, None].float(), pixels, arguments)


def _sharpness(pixels: Tensor, arguments: Tensor) -> Tensor:
    """Blends with the image smoothed by (1 1 1, 1 5 1, 1 1 1) / 13, whose border stays as it is.

    Sums of shifted images: a convolution takes three to four times as long on one thread.
    """
    image = pixels.short()  # sums of 13 pixels fit
    rows = image[:, :-2] + image[:, 1:-1] + image[:, 2:]
    box = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
    smooth = pixels.float()
    smooth[:, 1:-1, 1:-1] = ((box + 4 * image[:, 1:-1, 1:-1]).float() / 13).round()
    return _blend(smooth, pixels, arguments)


def _blend(degenerate: Tensor, pixels: Tensor, arguments: Tensor) -> Tensor:
    """Pillow's blend: `degenerate` at factor 0, the image at 1, an extrapolation above 1."""
    blended = degenerate + (pixels - degenerate) * _per_image(arguments)
    return (blended.clamp(0, 255) + 0.5).to(torch.uint8)


def _warp(pixels: Tensor, arguments: Tensor) -> Tensor:
    """Samples the image at (a x + b y + c, d x + e y + f) for each output (x, y), both in -1..1 from border to border.

    Bilinear. A point outside the image gets `FILL`, without blending at the border, as in Pillow.
    """
    side = pixels.shape[1]
    axis = (torch.arange(side, device=pixels.device) + 0.5) * (2 / side) - 1
    a, b, c, d, e, f = arguments[:, :, None, None].unbind(1)  # each (G, 1, 1)
    # Elementwise and not as a matrix product, whose rounding may depend on the number of images.
    grid = torch.stack([a * axis + b * axis[:, None] + c, d * axis + e * axis[:, None] + f], dim=-1)  # (G, S, S, 2)
    inside = ((grid >= -1) & (grid < 1)).all(-1, keepdim=True)
    warped = F.grid_sample(_planes(pixels), grid, padding_mode="border", align_corners=False)
    fill = torch.tensor(FILL).to(pixels.device, torch.uint8)
    return torch.where(inside, _pixels(warped), fill)


def _per_image(arguments: Tensor) -> Tensor:
    return arguments[:, 0, None, None, None]  # (G, 1, 1, 1)


def _none(strengths: Array, signs: Array) -> Array:
    return np.zeros((len(strengths), 1))


def _rotation(strengths: Array, signs: Array) -> Array:
    """Up to 30 degrees, counterclockwise where positive, as in Pillow."""
    angle = np.deg2rad(30 * strengths * signs)
    sine, cosine, zero = np.sin(angle), np.cos(angle), np.zeros_like(angle)
    return np.stack([cosine, -sine, zero, sine, cosine, zero], axis=-1)


def _affine(build: Callable[[Array, Array, Array], list[Array]], largest: float) -> Argument:
    """Affine maps of a value up to `largest`; `build` gets the values and arrays of zeros and ones."""

    def argument(strengths: Array, signs: Array) -> Array:
        value = largest * strengths * signs
        return np.stack(build(value, np.zeros_like(value), np.ones_like(value)), axis=-1)

    return argument


def _factor(strengths: Array, signs: Array) -> Array:
    factors: Array = np.maximum(0.1, 1 + 0.9 * strengths * signs)
    return factors[:, None]


def _mask(strengths: Array, signs: Array) -> Array:
    """Keeps the top 4 bits down to 1. timm goes to 0 at full strength, which leaves an all-black image."""
    bits: Array = np.maximum(1, 4 - np.floor(4 * strengths))
    masks: Array = 256 - 2 ** (8 - bits)
    return masks[:, None]


def _threshold(strengths: Array, signs: Array) -> Array:
    """256, which inverts nothing, down to 0, which inverts everything."""
    return (256 - np.floor(256 * strengths))[:, None]


def _addition(strengths: Array, signs: Array) -> Array:
    return np.floor(110 * strengths)[:, None]


class Operation(NamedTuple):
    """`run` changes pixels by arguments (G, 6); `argument` maps strengths in 0..1 and signs (G,) to those arguments."""

    run: Run
    argument: Argument


OPERATIONS = {
    "AutoContrast": Operation(_auto_contrast, _none),
    "Equalize": Operation(_equalize, _none),
    "Invert": Operation(_invert, _none),
    "Posterize": Operation(_posterize, _mask),
    "Solarize": Operation(_solarize, _threshold),
    "SolarizeAdd": Operation(_solarize_add, _addition),
    "Color": Operation(_color, _factor),
    "Contrast": Operation(_contrast, _factor),
    "Brightness": Operation(_brightness, _factor),
    "Sharpness": Operation(_sharpness, _factor),
    "Rotate": Operation(_warp, _rotation),
    # Sheared about the top left corner, as in Pillow: x + v y in pixels from there is x + v (y + 1) from the center.
    "ShearX": Operation(_warp, _affine(lambda v, zero, one: [one, v, v, zero, one, zero], 0.3)),
    "ShearY": Operation(_warp, _affine(lambda v, zero, one: [one, zero, zero, v, one, v], 0.3)),
    "TranslateX": Operation(_warp, _affine(lambda v, zero, one: [one, zero, 2 * v, zero, one, zero], 0.45)),
    "TranslateY": Operation(_warp, _affine(lambda v, zero, one: [one, zero, zero, zero, one, 2 * v], 0.45)),
}

# Operations with the same `run`, the five affine maps, run as one group.
_RUNS = list(dict.fromkeys(operation.run for operation in OPERATIONS.values()))
_KIND = np.array([_RUNS.index(operation.run) for operation in OPERATIONS.values()])
