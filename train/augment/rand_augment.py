"""RandAugment (Cubuk et al. 2020) on batches: random operations of photo editing, whole groups of images at a time.

The strengths are those of timm's `rand-m9-mstd0.5-inc1`: two layers, each of which leaves an image alone half of the
time; strengths around m that rise with m for every operation. Each operation does what Pillow's of that name does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import kornia.enhance
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lipsformer.train.data.rng import Rows

__all__ = ["OPERATIONS", "Edits", "draw_edits", "edit"]

LAYERS = 2
PROBABILITY = 0.5  # that a layer edits an image
DEVIATION = 0.5  # of the magnitudes
MAX_MAGNITUDE = 10.0
FILL = (124.0, 116.0, 104.0)  # the mean color of ImageNet: what a geometric operation shows beyond the border

Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
Indices = np.ndarray[tuple[int, ...], np.dtype[np.int64]]
Run = Callable[[Tensor, Tensor], Tensor]
Argument = Callable[[Array, Array], Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Edits(Rows):
    """What happens to the images of a batch: a row for each image.

    Attributes:
        operations: (B, 2) places in `OPERATIONS`, -1 where a layer leaves the image alone.
        arguments: (B, 2, 6) for each operation: an affine map's six numbers, or one number in the first column.
    """

    operations: Indices
    arguments: Array


def draw_edits(rng: np.random.Generator, batch: int, magnitude: float) -> Edits:
    """Operations and strengths for `batch` images."""
    shape = (batch, LAYERS)
    operations = rng.integers(len(OPERATIONS), size=shape)
    operations[rng.random(shape) >= PROBABILITY] = -1
    strengths = np.clip(rng.normal(magnitude, DEVIATION, shape), 0, MAX_MAGNITUDE) / MAX_MAGNITUDE
    signs = np.where(rng.random(shape) < 0.5, -1.0, 1.0)
    arguments = np.zeros((*shape, 6))
    for place, operation in enumerate(OPERATIONS.values()):
        chosen = operations == place
        values = operation.argument(strengths[chosen], signs[chosen])
        arguments[chosen, : values.shape[-1]] = values
    return Edits(operations=operations, arguments=arguments)


def edit(pixels: Tensor, edits: Edits) -> Tensor:
    """Edits uint8 pixels (B, S, S, 3); the result is a copy.

    The images are grouped by what they need on the CPU, from the rng, so that no device is waited for.
    """
    kinds = np.append(_KIND, -1)[edits.operations]  # (B, 2); -1 finds the appended -1
    order = np.argsort(kinds, axis=0, kind="stable")
    sorted_kinds = np.take_along_axis(kinds, order, axis=0)
    sorted_arguments = np.take_along_axis(edits.arguments, order[..., None], axis=0)
    places = torch.from_numpy(order).to(pixels.device, non_blocking=True)
    arguments = torch.from_numpy(sorted_arguments).float().to(pixels.device, non_blocking=True)
    pixels = pixels.clone()
    for layer in range(LAYERS):
        bounds = np.searchsorted(sorted_kinds[:, layer], np.arange(len(_RUNS) + 1))
        for run, start, stop in zip(_RUNS, bounds, bounds[1:], strict=False):
            if start < stop:
                group = places[start:stop, layer]
                edited = run(pixels.index_select(0, group), arguments[start:stop, layer])
                pixels.index_copy_(0, group, edited)
    return pixels


def _floats(pixels: Tensor) -> Tensor:
    """uint8 (G, S, S, 3) to float (G, 3, S, S) in 0..255, plane after plane: what kornia is fastest with."""
    return pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)


def _pixels(images: Tensor) -> Tensor:
    """The nearest uint8 (G, S, S, 3) to float (G, 3, S, S) in 0..255."""
    return (images + 0.5).to(torch.uint8).permute(0, 2, 3, 1)


def _by_kornia(function: Callable[[Tensor, Tensor], Tensor]) -> Run:
    """An operation from kornia's, of float images (G, 3, S, S) in 0..1 and a number (G,) for each."""

    def run(pixels: Tensor, arguments: Tensor) -> Tensor:
        return _pixels(function(_floats(pixels) / 255, arguments[:, 0]) * 255)

    return run


def _auto_contrast(pixels: Tensor, arguments: Tensor) -> Tensor:
    """Stretches each channel to 0..255; a flat channel stays, where kornia's normalize_min_max would blacken it."""
    low, high = pixels.amin((1, 2), keepdim=True).float(), pixels.amax((1, 2), keepdim=True).float()
    stretched = (pixels - low) * 255 / (high - low).clamp(min=1)
    return torch.where(high > low, stretched.to(torch.uint8), pixels)


def _solarize_add(pixels: Tensor, arguments: Tensor) -> Tensor:
    """Brightens the dark half. (kornia's solarize with `additions` adds everywhere and inverts the bright half.)"""
    return torch.where(pixels < 128, pixels + _per_image(arguments).to(torch.uint8), pixels)


def _contrast(pixels: Tensor, arguments: Tensor) -> Tensor:
    """Towards or away from the mean gray.

    A mean of whole numbers: the last bits of a sum of floats, as in kornia, depend on how many images the group has.
    """
    red, green, blue = pixels.int().unbind(-1)  # (G, S, S)
    gray = (red * 19595 + green * 38470 + blue * 7471 + 2**15) >> 16
    count = gray[0].numel()
    mean = (2 * gray.sum((1, 2)) + count) // (2 * count)  # rounded
    return _blend(mean[:, None, None, None].float(), pixels, arguments)


def _sharpness(pixels: Tensor, arguments: Tensor) -> Tensor:
    """Towards or away from the image smoothed by (1 1 1, 1 5 1, 1 1 1) / 13, the border left as it is.

    Sums of shifted images: kornia's convolution takes three to four times as long on one thread.
    """
    image = pixels.short()  # sums of 13 pixels fit
    rows = image[:, :-2] + image[:, 1:-1] + image[:, 2:]
    box = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
    smooth = pixels.float()
    smooth[:, 1:-1, 1:-1] = ((box + 4 * image[:, 1:-1, 1:-1]).float() / 13).round()
    return _blend(smooth, pixels, arguments)


def _blend(degenerate: Tensor, pixels: Tensor, arguments: Tensor) -> Tensor:
    """`degenerate` at factor 0, the image at 1, and beyond it above 1."""
    blended = degenerate + (pixels - degenerate) * _per_image(arguments)
    return (blended.clamp(0, 255) + 0.5).to(torch.uint8)


def _warp(pixels: Tensor, arguments: Tensor) -> Tensor:
    """Shows at (x, y), each in -1..1 between the borders, what the image has at (a x + b y + c, d x + e y + f).

    kornia's warp_affine takes the corners' centers for the borders, and blends the fill into them.
    """
    side = pixels.shape[1]
    axis = (torch.arange(side, device=pixels.device) + 0.5) * (2 / side) - 1
    a, b, c, d, e, f = arguments[:, :, None, None].unbind(1)  # each (G, 1, 1)
    # Elementwise and not as a matrix product, whose rounding may depend on the number of images.
    grid = torch.stack([a * axis + b * axis[:, None] + c, d * axis + e * axis[:, None] + f], dim=-1)  # (G, S, S, 2)
    inside = ((grid >= -1) & (grid < 1)).all(-1, keepdim=True)
    warped = F.grid_sample(_floats(pixels), grid, padding_mode="border", align_corners=False)
    fill = torch.tensor(FILL).to(pixels.device, torch.uint8)
    return torch.where(inside, _pixels(warped), fill)


def _per_image(arguments: Tensor) -> Tensor:
    return arguments[:, 0, None, None, None]  # (G, 1, 1, 1)


def _none(strengths: Array, signs: Array) -> Array:
    return np.zeros((len(strengths), 1))


def _rotation(strengths: Array, signs: Array) -> Array:
    """Up to 30 degrees, anticlockwise where positive, as in Pillow."""
    angle = np.deg2rad(30 * strengths * signs)
    sine, cosine, zero = np.sin(angle), np.cos(angle), np.zeros_like(angle)
    return np.stack([cosine, -sine, zero, sine, cosine, zero], axis=-1)


def _affine(build: Callable[[Array, Array, Array], list[Array]], largest: float) -> Argument:
    """Affine maps from up to `largest` of something; `build` also gets arrays of zeros and ones."""

    def argument(strengths: Array, signs: Array) -> Array:
        value = largest * strengths * signs
        return np.stack(build(value, np.zeros_like(value), np.ones_like(value)), axis=-1)

    return argument


def _factor(strengths: Array, signs: Array) -> Array:
    factors: Array = np.maximum(0.1, 1 + 0.9 * strengths * signs)
    return factors[:, None]


def _kept_bits(strengths: Array, signs: Array) -> Array:
    """4 bits down to 1; timm goes to 0 at full strength, which leaves a black image that shows nothing."""
    bits: Array = np.maximum(1, 4 - np.floor(4 * strengths))
    return bits[:, None]


def _threshold(strengths: Array, signs: Array) -> Array:
    """256, which inverts nothing, down to 0, which inverts all; in the 0..1 of kornia's images."""
    return ((256 - np.floor(256 * strengths)) / 255)[:, None]


def _addition(strengths: Array, signs: Array) -> Array:
    return np.floor(110 * strengths)[:, None]


class Operation(NamedTuple):
    """`run` edits pixels by arguments (G, 6); `argument` maps strengths in 0..1 and signs (G,) to them."""

    run: Run
    argument: Argument


_saturation = _by_kornia(kornia.enhance.adjust_saturation_with_gray_subtraction)
_brightness = _by_kornia(kornia.enhance.adjust_brightness_accumulative)

OPERATIONS = {
    "AutoContrast": Operation(_auto_contrast, _none),
    "Equalize": Operation(_by_kornia(lambda images, _: kornia.enhance.equalize(images)), _none),
    "Invert": Operation(_by_kornia(lambda images, _: kornia.enhance.invert(images)), _none),
    "Posterize": Operation(_by_kornia(lambda images, bits: kornia.enhance.posterize(images, bits.int())), _kept_bits),
    "Solarize": Operation(_by_kornia(kornia.enhance.solarize), _threshold),
    "SolarizeAdd": Operation(_solarize_add, _addition),
    "Color": Operation(_saturation, _factor),
    "Contrast": Operation(_contrast, _factor),
    "Brightness": Operation(_brightness, _factor),
    "Sharpness": Operation(_sharpness, _factor),
    "Rotate": Operation(_warp, _rotation),
    # Sheared from the top left corner, as in Pillow: x + v y in pixels from there is x + v (y + 1) from the center.
    "ShearX": Operation(_warp, _affine(lambda v, zero, one: [one, v, v, zero, one, zero], 0.3)),
    "ShearY": Operation(_warp, _affine(lambda v, zero, one: [one, zero, zero, v, one, v], 0.3)),
    "TranslateX": Operation(_warp, _affine(lambda v, zero, one: [one, zero, 2 * v, zero, one, zero], 0.45)),
    "TranslateY": Operation(_warp, _affine(lambda v, zero, one: [one, zero, zero, zero, one, 2 * v], 0.45)),
}

# Operations with the same `run`, the five affine maps, are run as one group.
_RUNS = list(dict.fromkeys(operation.run for operation in OPERATIONS.values()))
_KIND = np.array([_RUNS.index(operation.run) for operation in OPERATIONS.values()])
