"""Sampling: which images each step sees, how processes share a batch, and the random numbers behind it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from lipsformer import InputError
from lipsformer.train import load_recipe
from lipsformer.train.data.dataset import TrainingBatchSampler
from lipsformer.train.data.rng import Stream, generator
from lipsformer.train.data.sampler import EpochSampler, split_batch
from lipsformer.train.distributed import DistributedContext


def make_sampler(images: int, *overrides: str, classes: int = 3) -> EpochSampler:
    return EpochSampler(np.arange(images) % classes, load_recipe("default", ["batch_size=16", "epochs=3", *overrides]))


def alone(rank: int = 0, count: int = 1) -> DistributedContext:
    return DistributedContext(rank=rank, world_size=count, device=torch.device("cpu"))


@pytest.mark.parametrize("images", [3, 64, 100])
def test_each_epoch_shows_every_image_once(images: int) -> None:
    sampler = make_sampler(images)
    keys = list(TrainingBatchSampler(sampler, alone()))
    assert len(keys) == sampler.total == 3 * sampler.steps_per_epoch
    for epoch in range(3):
        shown = [(position, index) for batch in keys for (e, position, index) in batch if e == epoch]
        assert [position for position, _ in shown] == list(range(images))
        assert sorted(index for _, index in shown) == list(range(images))
    assert max(map(len, keys)) <= 16
    assert max(map(len, keys)) - min(map(len, keys)) <= 1
    for start in (0, 1, sampler.steps_per_epoch, len(keys) - 1):
        assert list(TrainingBatchSampler(sampler, alone(), start)) == keys[start:]


@pytest.mark.parametrize("images", [37, 64, 100])
@pytest.mark.parametrize("count", [2, 4])
def test_the_shares_of_the_processes_are_the_batch(images: int, count: int) -> None:
    sampler = make_sampler(images)
    shares = [list(TrainingBatchSampler(sampler, alone(rank, count))) for rank in range(count)]
    for whole, *parts in zip(TrainingBatchSampler(sampler, alone()), *shares, strict=True):
        assert [key for part in parts for key in part] == whole
        assert all(len(part) % 2 == 0 for part in parts[:-1])  # no pair of partners is split
        assert min(map(len, parts)) > 0


def test_accumulation_splits_within_the_shares() -> None:
    for size in range(1, 70):
        for count, grad_accum_steps in ((1, 1), (2, 2), (3, 4)):
            parts, shares = split_batch(size, count * grad_accum_steps), split_batch(size, count)
            assert [part.start for part in parts[::grad_accum_steps]] == [share.start for share in shares]
            assert parts[-1].stop == size
            assert all(a.stop == b.start and a.stop % 2 == 0 for a, b in itertools.pairwise(parts))


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    make_sampler(64).check_shares(8)
    with pytest.raises(InputError, match=r"batch_size=16 cannot be shared evenly by 3 processes; use 15"):
        make_sampler(64).check_shares(3)
    with pytest.raises(InputError, match=r"cannot be shared evenly by 2 processes x 3 parts; use 18"):
        make_sampler(64, "grad_accum_steps=3").check_shares(2)
    with pytest.raises(InputError, match=r"batches of 8 images are too few for 8 processes"):
        make_sampler(17).check_shares(8)


def test_balanced_epochs_show_every_class_equally_often() -> None:
    labels = np.array([0] * 80 + [1] * 15 + [2] * 5)
    sampler = EpochSampler(labels, load_recipe("default", ["batch_size=16", "epochs=2", "balanced=true"]))
    epochs = [
        np.concatenate(
            [sampler.images(step) for step in range(e * sampler.steps_per_epoch, (e + 1) * sampler.steps_per_epoch)]
        )
        for e in range(2)
    ]
    for shown in epochs:
        assert len(shown) == 100
        assert sorted(np.bincount(labels[shown])) == [33, 33, 34]
        assert np.bincount(shown, minlength=100).max() == 7  # 33 or 34 of five images: each six or seven times
        assert np.bincount(shown, minlength=100)[:80].max() == 1
        assert np.bincount(shown, minlength=100)[80:95].min() >= 2
    assert epochs[0].tolist() != epochs[1].tolist()


def test_random_numbers_depend_on_seed_and_key_alone() -> None:
    keys = list(itertools.product(Stream, range(3), range(3)))
    first = {key: generator(0, *key).random(4).tolist() for key in keys}
    again = {key: generator(0, *key).random(4).tolist() for key in reversed(keys)}
    assert first == again
    assert len({tuple(values) for values in first.values()}) == len(keys)
