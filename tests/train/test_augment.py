"""Augmentation: each operation against Pillow's, targets and areas, frequencies, and that cutting changes nothing."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from lipsformer.images.preprocessing import Preprocessing
from lipsformer.model.pixel_norm import PixelNormalize
from lipsformer.train.augment.pipeline import Augmentation, AugmentationParams
from lipsformer.train.augment.rand_augment import (
    FILL,
    OPERATIONS,
    RandAugmentParams,
    rand_augment,
    sample_rand_augment,
)
from lipsformer.train.augment.random_erasing import ErasingParams, random_erasing

CLASSES = 5
OFF = Augmentation(rand_augment=0, mixup=0, cutmix=0, random_erasing=0, label_smoothing=0, classes=CLASSES)
ALL = Augmentation(rand_augment=9, mixup=0.8, cutmix=1.0, random_erasing=0.25, label_smoothing=0.1, classes=CLASSES)
PLAIN = Preprocessing(image_size=8)
STRENGTHS = (0.25, 0.6, 0.9, 1.0)


@functools.cache
def opened(path: Path, side: int) -> Image.Image:
    return Image.open(path).convert("RGB").resize((side, side))


def photos(samples: list[Path], side: int) -> list[Image.Image]:
    return [opened(path, side) for path in samples]


def stacked(images: list[Image.Image]) -> Tensor:
    return torch.from_numpy(np.stack([np.asarray(image) for image in images]))


def one_operation(name: str, batch: int, strength: float, sign: float) -> RandAugmentParams:
    operations, arguments = np.full((batch, 2), -1), np.zeros((batch, 2, 6))
    operations[:, 1] = list(OPERATIONS).index(name)
    values = OPERATIONS[name].argument(np.full(batch, strength), np.full(batch, sign))
    arguments[:, 1, : values.shape[1]] = values
    return RandAugmentParams(operations=operations, arguments=arguments)


def solarize_add(image: Image.Image, addition: int) -> Image.Image:
    return image.point([min(255, value + addition) if value < 128 else value for value in range(256)] * 3)


def enhance(kind: Callable[[Image.Image], ImageEnhance._Enhance]) -> Callable[[Image.Image, float], Image.Image]:
    return lambda image, v: kind(image).enhance(max(0.1, 1 + 0.9 * v))


def affine(*rows: str) -> Callable[[Image.Image, float], Image.Image]:
    """Pillow's map (x, y) -> (a x + b y + c, ...) from pixels to pixels, given as numbers and "v"."""

    def run(image: Image.Image, v: float) -> Image.Image:
        side = image.width
        known = {"shear": 0.3 * v, "move": 0.45 * v * side, "1": 1.0, "0": 0.0}
        data = tuple(known[row] for row in rows)
        fill = tuple(int(channel) for channel in FILL)
        return image.transform(image.size, Image.Transform.AFFINE, data, Image.Resampling.BILINEAR, fillcolor=fill)

    return run


def rotate(image: Image.Image, v: float) -> Image.Image:
    return image.rotate(30 * v, Image.Resampling.BILINEAR, fillcolor=tuple(int(channel) for channel in FILL))


# What each operation should do to an image at a signed strength, by Pillow, and the greatest difference allowed.
PILLOW: dict[str, tuple[Callable[[Image.Image, float], Image.Image], float]] = {
    "AutoContrast": (lambda image, v: ImageOps.autocontrast(image), 1),
    "Equalize": (lambda image, v: ImageOps.equalize(image), 0),
    "Invert": (lambda image, v: ImageOps.invert(image), 0),
    "Posterize": (lambda image, v: ImageOps.posterize(image, max(1, 4 - int(4 * abs(v)))), 0),
    "Solarize": (lambda image, v: ImageOps.solarize(image, 256 - int(256 * abs(v))), 0),
    "SolarizeAdd": (lambda image, v: solarize_add(image, int(110 * abs(v))), 0),
    "Color": (enhance(ImageEnhance.Color), 2),
    "Contrast": (enhance(ImageEnhance.Contrast), 1),
    "Brightness": (enhance(ImageEnhance.Brightness), 1),
    "Sharpness": (enhance(ImageEnhance.Sharpness), 1),
    "Rotate": (rotate, 1),
    "ShearX": (affine("1", "shear", "0", "0", "1", "0"), 1),
    "ShearY": (affine("1", "0", "0", "shear", "1", "0"), 1),
    "TranslateX": (affine("1", "0", "move", "0", "1", "0"), 1),
    "TranslateY": (affine("1", "0", "0", "0", "1", "move"), 1),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_does_what_pillow_does(name: str, samples: list[Path]) -> None:
    reference, tolerance = PILLOW[name]
    for side, strength, sign in itertools.product((32, 75), STRENGTHS, (-1, 1)):
        images = photos(samples, side)
        expected = stacked([reference(image, strength * sign) for image in images]).int()
        edited = rand_augment(stacked(images), one_operation(name, len(images), strength, sign)).int()
        differs = ((edited - expected).abs() > tolerance).any(-1)
        # Pixels whose source lies on the border itself may fall on either side of it.
        assert differs.float().mean() <= (1e-3 if name in ("Rotate", "ShearX", "ShearY") else 0)
        assert (edited != stacked(images)).any() or name == "AutoContrast"


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("level", [0, 127, 255])
def test_flat_images_stay_what_pillow_makes_of_them(name: str, level: int) -> None:
    images = [Image.new("RGB", (16, 16), (level, level, 200))] * 2
    reference, tolerance = PILLOW[name]
    edited = rand_augment(stacked(images), one_operation(name, 2, 0.9, 1.0)).int()
    assert (edited - stacked([reference(image, 0.9) for image in images]).int()).abs().max() <= tolerance


def test_every_operation_grows_with_its_strength(samples: list[Path]) -> None:
    pixels = stacked(photos(samples, 64))
    for name in set(OPERATIONS) - {"AutoContrast", "Equalize", "Invert"}:
        distances = [
            (rand_augment(pixels, one_operation(name, len(pixels), strength, -1)).float() - pixels).abs().mean()
            for strength in (0.3, 0.6, 0.9)
        ]
        assert distances == sorted(distances), name


def test_two_layers_edit_one_after_the_other(samples: list[Path]) -> None:
    pixels = stacked(photos(samples, 48))
    original = pixels.clone()
    edits = sample_rand_augment(np.random.default_rng(0), len(pixels), 9)
    only = [dataclasses.replace(edits, operations=edits.operations.copy()) for _ in range(2)]
    only[0].operations[:, 1] = only[1].operations[:, 0] = -1
    assert torch.equal(rand_augment(pixels, edits), rand_augment(rand_augment(pixels, only[0]), only[1]))
    assert torch.equal(pixels, original)


def test_an_image_is_edited_as_if_alone(samples: list[Path]) -> None:
    """An image's result is that of the image alone, whatever its neighbors in a group are."""
    pixels = stacked(photos(samples, 40)).repeat(4, 1, 1, 1)
    edits = sample_rand_augment(np.random.default_rng(1), len(pixels), 9)
    assert {*edits.operations.ravel()} == {-1, *range(len(OPERATIONS))}
    together = rand_augment(pixels, edits)
    for place in range(len(pixels)):
        rows = slice(place, place + 1)
        assert torch.equal(rand_augment(pixels[rows], edits[rows]), together[rows])
    untouched = (edits.operations == -1).all(axis=1)
    assert 5 < untouched.sum() < 25
    assert torch.equal(together[torch.from_numpy(untouched)], pixels[torch.from_numpy(untouched)])


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_large_image_is_edited_alike_alone_and_in_a_group(name: str, samples: list[Path]) -> None:
    """Large enough that threads share the work on one image, but not that on many."""
    pixels = stacked(photos(samples, 224))
    edits = one_operation(name, len(pixels), 0.9, 1.0)
    together = rand_augment(pixels, edits)
    for place in range(len(pixels)):
        rows = slice(place, place + 1)
        assert torch.equal(rand_augment(pixels[rows], edits[rows]), together[rows])


def test_operations_are_drawn_evenly_with_the_strength_asked_for() -> None:
    batch = 60_000
    edits = sample_rand_augment(np.random.default_rng(0), batch, 6.0)
    for layer in range(2):
        counts = np.bincount(edits.operations[:, layer] + 1, minlength=16)
        assert counts[0] == pytest.approx(batch / 2, abs=5 * (batch / 4) ** 0.5)
        assert counts[1:] == pytest.approx(batch / 30, abs=5 * (batch / 30) ** 0.5)
    together = (edits.operations >= 0).all(axis=1).mean()
    assert together == pytest.approx(0.25, abs=0.01)  # the layers choose independently
    moves = edits.arguments[edits.operations == list(OPERATIONS).index("TranslateX"), 2] / (2 * 0.45) * 10
    assert np.abs(moves).mean() == pytest.approx(6.0, abs=0.05)
    assert np.abs(moves).std() == pytest.approx(0.5, abs=0.03)
    assert (moves > 0).mean() == pytest.approx(0.5, abs=0.05)
    strongest = sample_rand_augment(np.random.default_rng(0), batch, 10.0)
    moves = strongest.arguments[strongest.operations == list(OPERATIONS).index("TranslateX"), 2] / (2 * 0.45) * 10
    assert np.abs(moves).max() == pytest.approx(10.0)


def batch_of(samples: list[Path], batch: int, side: int) -> tuple[Tensor, Tensor, PixelNormalize]:
    pixels = stacked(photos(samples, side))
    places = torch.arange(batch) % len(pixels)
    return pixels[places], places % CLASSES, PixelNormalize(Preprocessing(image_size=side))


@pytest.mark.parametrize(("batch", "side"), [(64, 32), (17, 64), (7, 224), (1, 32)])
def test_cutting_a_batch_changes_no_bit(samples: list[Path], batch: int, side: int) -> None:
    pixels, labels, normalize = batch_of(samples, batch, side)
    for step in range(4):
        params = ALL.sample(0, step, batch)
        images, targets = ALL.apply(pixels, labels, params, normalize)
        for size in (2, 16, 32):
            parts = [
                ALL.apply(pixels[start:stop], labels[start:stop], params.part(start, stop), normalize)
                for start in range(0, batch, size)
                for stop in [min(start + size, batch)]
            ]
            assert torch.equal(torch.cat([part[0] for part in parts]), images)
            assert torch.equal(torch.cat([part[1] for part in parts]), targets)


def test_no_result_is_waited_for() -> None:
    """On PyTorch's device without data whatever reads a result, and so would stall a GPU, raises an error."""
    normalize = PixelNormalize(PLAIN).to("meta")
    pixels = torch.empty(64, 8, 8, 3, dtype=torch.uint8, device="meta")
    labels = torch.empty(64, dtype=torch.long, device="meta")
    images, targets = ALL.apply(pixels, labels, ALL.sample(0, 0, 64), normalize)
    assert (images.device.type, targets.device.type) == ("meta", "meta")
    assert (images.shape, targets.shape) == ((64, 3, 8, 8), (64, CLASSES))


def test_a_pair_is_never_cut() -> None:
    params = ALL.sample(0, 0, 7)
    assert params.part(6, 7).images == 1
    assert params.part(2, 4).part(0, 2).images == 2
    for start, stop in ((1, 4), (0, 3), (0, 8), (-2, 2)):
        with pytest.raises(ValueError, match="split between two pairs"):
            params.part(start, stop)
    with pytest.raises(ValueError, match="parameters for 7"):
        ALL.apply(torch.zeros(6, 8, 8, 3, dtype=torch.uint8), torch.zeros(6).long(), params, PixelNormalize(PLAIN))


def test_augmentation_is_a_function_of_seed_and_step(samples: list[Path]) -> None:
    pixels, labels, normalize = batch_of(samples, 8, 32)

    def images(seed: int, step: int) -> Tensor:
        return ALL.apply(pixels, labels, ALL.sample(seed, step, 8), normalize)[0]

    state = torch.random.get_rng_state()
    first = {key: images(*key) for key in itertools.product(range(2), range(3))}
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(5)
    np.random.default_rng(3).random()
    for key in reversed(first):
        assert torch.equal(images(*key), first[key])
    for one, other in itertools.combinations(first.values(), 2):
        assert not torch.equal(one, other)


def test_each_kind_samples_again_at_each_step() -> None:
    params = [ALL.sample(seed, step, 64) for seed in range(2) for step in range(2)]
    for kind in ("rand_augment", "random_erasing", "mix"):
        arrays = [dataclasses.asdict(getattr(one, kind)) for one in params]
        for name, (one, other) in itertools.product(arrays[0], itertools.combinations(arrays, 2)):
            assert not np.array_equal(one[name], other[name]), (kind, name)


def test_one_kind_does_not_change_the_params_of_another() -> None:
    params = ALL.sample(1, 2, 16)
    for off in ("rand_augment", "random_erasing"):
        other = dataclasses.replace(ALL, **{off: 0.0}).sample(1, 2, 16)
        assert other.mix is not None
        assert params.mix is not None
        assert (other.mix.lam == params.mix.lam).all()
    assert dataclasses.replace(ALL, rand_augment=0.0).sample(1, 2, 16).rand_augment is None


@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
def test_all_off_is_the_normalized_image_and_its_smoothed_label(samples: list[Path], precision: torch.dtype) -> None:
    pixels, labels, normalize = batch_of(samples, 7, 32)
    normalize.to(precision)
    augmentation = dataclasses.replace(OFF, label_smoothing=0.1)
    images, targets = augmentation.apply(pixels, labels, augmentation.sample(0, 0, 7), normalize)
    assert images.dtype == precision
    assert torch.equal(images, normalize(pixels))
    assert images.stride() == normalize(pixels).stride()
    logits = torch.randn(7, CLASSES, generator=torch.Generator().manual_seed(0))
    assert float(F.cross_entropy(logits, targets)) == pytest.approx(
        float(F.cross_entropy(logits, labels, label_smoothing=0.1))
    )


def test_in_double_precision_only_the_rounding_differs(samples: list[Path]) -> None:
    pixels, labels, normalize = batch_of(samples, 14, 32)
    params = ALL.sample(0, 0, 14)
    single, targets = ALL.apply(pixels, labels, params, normalize)
    double, double_targets = ALL.apply(pixels, labels, params, normalize.double())
    assert (double.dtype, double_targets.dtype) == (torch.float64, torch.float32)
    assert (single - double).abs().max() < 1e-5
    assert torch.equal(targets, double_targets) or (targets - double_targets).abs().max() < 1e-6


def constant(levels: list[int], side: int) -> Tensor:
    return torch.tensor(levels, dtype=torch.uint8)[:, None, None, None].expand(-1, side, side, 3)


@pytest.mark.parametrize("side", [32, 33])
def test_cutmix_targets_are_the_shares_of_the_pixels(side: int) -> None:
    """Each image of a flat color of its own, so that a pixel says which image it comes from."""
    batch = 9
    augmentation = dataclasses.replace(OFF, cutmix=1.0, classes=batch)
    pixels, labels = constant([10 * place for place in range(batch)], side), torch.arange(batch)
    normalize = PixelNormalize(Preprocessing(image_size=side))
    origins = normalize(pixels)[:, 0, 0, 0]
    mixed, whole = 0, 0
    for step in range(40):
        images, targets = augmentation.apply(pixels, labels, augmentation.sample(0, step, batch), normalize)
        shares = (images[:, 0, :, :, None] == origins).float().mean(dim=(1, 2))  # (B, B): of whose pixels
        assert (shares - targets).abs().max() < 1e-6
        assert torch.equal(targets.argmax(1)[-1:], labels[-1:])
        partners = labels[:-1] ^ 1
        assert (targets[:-1].gather(1, partners[:, None])[:, 0] + targets.diagonal()[:-1]).allclose(torch.ones(8))
        # Both images of a pair lose the same box.
        boxes = images[:, 0] != origins[:, None, None]
        assert torch.equal(boxes[0:8:2], boxes[1:8:2])
        for box in boxes[:-1]:
            rows, columns = box.any(1).nonzero(), box.any(0).nonzero()
            mixed += len(rows) > 0
            whole += 1
            assert box.sum() == (len(rows) * len(columns) if len(rows) else 0)
            assert len(rows) == 0 or len(rows) == rows[-1] - rows[0] + 1
    assert mixed > 0.8 * whole


def test_mixup_weighs_both_images_of_a_pair() -> None:
    batch = 7
    augmentation = dataclasses.replace(OFF, mixup=0.8, classes=batch)
    pixels, labels = constant([30 * place for place in range(batch)], 16), torch.arange(batch)
    normalize = PixelNormalize(Preprocessing(image_size=16))
    plain = normalize(pixels)
    shares = []
    for step in range(200):
        images, targets = augmentation.apply(pixels, labels, augmentation.sample(0, step, batch), normalize)
        assert (targets.sum(1) - 1).abs().max() < 1e-6
        expected = (targets @ plain.flatten(1)).view_as(plain)
        assert (images - expected).abs().max() < 1e-5
        assert torch.equal(targets[0, 0], targets[1, 1])
        assert torch.equal(images[6], plain[6])  # without a partner
        shares += targets.diagonal()[0:6:2].tolist()
    assert np.mean(shares) == pytest.approx(0.5, abs=0.04)
    assert np.std(shares) == pytest.approx((1 / 4 / (2 * 0.8 + 1)) ** 0.5, abs=0.02)  # of Beta(0.8, 0.8)


def test_mixed_targets_sum_to_one_with_smoothing(samples: list[Path]) -> None:
    pixels, labels, normalize = batch_of(samples, 32, 32)
    targets = ALL.apply(pixels, labels, ALL.sample(0, 0, 32), normalize)[1]
    assert (targets.sum(1) - 1).abs().max() < 1e-6
    assert targets.min() >= 0.1 / CLASSES - 1e-6


def test_mixup_and_cutmix_take_turns_by_chance() -> None:
    both = ALL.sample(0, 0, 40_001).mix
    assert both is not None
    assert both.is_cutmix[:-1].mean() == pytest.approx(0.5, abs=0.02)
    assert (both.is_cutmix[0:-1:2] == both.is_cutmix[1:-1:2]).all()
    assert not both.is_cutmix[-1]
    assert both.lam[-1] == 1
    assert abs(np.corrcoef(both.centers[:-1:2].T)[0, 1]) < 0.05
    # Each kind has its own alpha: 0.8 and 1.
    for cut, alpha in ((False, 0.8), (True, 1.0)):
        chosen = both.lam[:-1][both.is_cutmix[:-1] == cut]
        assert chosen.var() == pytest.approx(1 / 4 / (2 * alpha + 1), abs=0.003)
    mixup = dataclasses.replace(ALL, cutmix=0.0).sample(0, 0, 100).mix
    cutmix = dataclasses.replace(ALL, mixup=0.0).sample(0, 0, 100).mix
    assert mixup is not None
    assert not mixup.is_cutmix.any()
    assert cutmix is not None
    assert cutmix.is_cutmix.all()


def erased_boxes(params: AugmentationParams, batch: int, side: int) -> tuple[Tensor, Tensor]:
    """Which pixels were erased (B, S, S), and the erased images (B, S, S, 3), from images of the value 9."""
    assert params.random_erasing is not None
    images = random_erasing(torch.full((batch, side, side, 3), 9.0), params.random_erasing)
    changed = images != 9
    assert torch.equal(changed.any(-1), changed.all(-1))
    return changed.any(-1), images


def test_erasing_covers_boxes_of_the_right_share_and_shape() -> None:
    batch, side = 4000, 64
    boxes, images = erased_boxes(dataclasses.replace(OFF, random_erasing=0.25).sample(0, 0, batch), batch, side)
    erased = boxes.flatten(1).any(1)
    assert float(erased.float().mean()) == pytest.approx(0.25, abs=0.03)
    boxes, images = boxes[erased], images[erased]
    heights, widths = boxes.any(2).sum(1), boxes.any(1).sum(1)
    shares = boxes.flatten(1).float().mean(1)
    assert torch.equal(boxes.flatten(1).sum(1), heights * widths)  # whole boxes
    assert 0.015 < shares.min() < 0.03
    assert 0.3 < shares.max() < 0.345
    assert float(shares.mean()) == pytest.approx((0.02 + 1 / 3) / 2, abs=0.015)  # uniform
    ratios = (heights / widths).log()
    assert float(ratios.mean()) == pytest.approx(0, abs=0.08)
    assert np.log(3) < ratios.max() < np.log(3.9)
    assert -np.log(3.9) < ratios.min() < -np.log(3)
    noise = images[boxes]
    assert float(noise.mean()) == pytest.approx(0, abs=0.01)
    assert float(noise.std()) == pytest.approx(1, abs=0.01)
    # Anywhere in the image, up to its border.
    for axis in (1, 2):
        seen = boxes.any(axis).float().mean(0)
        assert seen.min() > 0
        assert float((seen - seen.flip(0)).abs().max()) < 0.15


def test_noise_is_per_pixel_channel_and_image() -> None:
    whole = ErasingParams(sizes=np.ones((2, 2)), positions=np.zeros((2, 2)), noise=np.array([0, 7]))
    images = random_erasing(torch.zeros(2, 32, 32, 3), whole)
    assert images.unique().numel() > 0.99 * 32 * 32 * 3
    assert not torch.equal(images[0], images[1])
    correlation = np.corrcoef(images.flatten(1).numpy())[0, 1]
    assert abs(correlation) < 0.1
    assert abs(np.corrcoef(images[0].flatten(0, 1).T.numpy())[0, 1]) < 0.15  # the channels
    offsets = ALL.sample(0, 0, 64).random_erasing
    assert offsets is not None
    assert len({*offsets.noise.tolist()}) == 64


def test_erasing_comes_before_mixing() -> None:
    """Noise of one image so shows through in its partner, as in timm."""
    augmentation = dataclasses.replace(OFF, random_erasing=1.0, mixup=1.0)
    normalize = PixelNormalize(Preprocessing(image_size=32))
    pixels, labels = constant([0, 0], 32), torch.zeros(2, dtype=torch.long)
    params = augmentation.sample(0, 0, 2)
    assert params.random_erasing is not None
    lone = dataclasses.replace(params.random_erasing, sizes=params.random_erasing.sizes * np.array([[1.0], [0.0]]))
    images, _ = augmentation.apply(pixels, labels, dataclasses.replace(params, random_erasing=lone), normalize)
    changed = (images != normalize(pixels)).any(1)
    assert changed[0].any()
    assert torch.equal(changed[0], changed[1])
