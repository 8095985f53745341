"""The pooled features of a split's images under a frozen network, shared by the processes of a training."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lipsformer.datasets import Split
from lipsformer.images.preprocessing import Preprocessing
from lipsformer.model.blocks import LipsFormer
from lipsformer.system.errors import InputError
from lipsformer.train.data.crops import Crops
from lipsformer.train.data.dataset import Batch, LoadedImage, collate, usable_workers
from lipsformer.train.data.rng import Stream, generator
from lipsformer.train.loop import TrainContext
from lipsformer.train.recipe import Recipe

__all__ = ["Features", "Views", "compute_features"]


class Views(Dataset[LoadedImage]):
    """Views of each image: the evaluation crop, its mirror image, and random crops. Their label is the image's index.

    Pixels are (views, S, S, 3). `crops` random crops are drawn as in training, as a function of (seed, crop, index).
    With `crops` None there is the evaluation crop alone. Without `hflip` nothing is mirrored.
    """

    def __init__(self, split: Split, recipe: Recipe, preprocessing: Preprocessing, *, crops: int | None) -> None:
        self.split = split
        self.seed = recipe.seed
        self.preprocessing = preprocessing
        self.mirror = crops is not None and recipe.hflip > 0
        self.crops = crops or 0
        self.random = Crops(preprocessing=preprocessing, scale=recipe.crop_scale, hflip=recipe.hflip)

    def __len__(self) -> int:
        return len(self.split)

    @property
    def count(self) -> int:
        """Views of one image."""
        return 1 + self.mirror + self.crops

    def __getitem__(self, index: int) -> LoadedImage:
        try:
            center = self.preprocessing.read(self.split.encoded(index), name=self.split.where(index))
            views = [center, center[:, ::-1]] if self.mirror else [center]
            draws = (generator(self.seed, Stream.CROP, crop, index) for crop in range(self.crops))
            views.extend(self.random.read(self.split, index, draw) for draw in draws)
        except InputError as error:
            return LoadedImage(pixels=None, label=index, unreadable=(str(error),))
        return LoadedImage(pixels=np.stack(views), label=index)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Features:
    """Features (N, views, C) of N images, on the CPU. Those of an image that is not `readable` (N,) are zeros."""

    values: Tensor
    readable: Tensor


@torch.inference_mode()
def compute_features(
    views: Views, model: LipsFormer, context: TrainContext, after_batch: Callable[[Batch], None]
) -> Features:
    """Computes the features of all `views`. `after_batch` receives each batch of this process.

    Whole batches are shared among the processes, so that the features do not depend on their number. Precision is full,
    as in validation.

    Raises:
        InputError: if a feature is not finite; names the image.
    """
    distributed, batch_size = context.distributed, max(1, context.recipe.batch_size // views.count)
    starts = range(0, len(views), batch_size)[distributed.rank :: distributed.world_size]
    workers = usable_workers(context.recipe.workers)
    loader: DataLoader[Any] = DataLoader(
        views,
        batch_sampler=[[*range(start, min(start + batch_size, len(views)))] for start in starts],
        num_workers=workers,
        collate_fn=collate,
        pin_memory=distributed.device.type == "cuda",
    )
    shape = (len(views), views.count, model.head.in_features)
    values = torch.zeros(shape, dtype=model.head.weight.dtype, device=distributed.device)
    readable = torch.zeros(len(views), dtype=torch.int64, device=distributed.device)
    for batch in loader:
        after_batch(batch)
        if not len(batch.labels):
            continue
        pixels = batch.pixels.to(distributed.device, non_blocking=True)
        features = model.forward_features(context.normalize(pixels.flatten(0, 1))).view(len(pixels), *shape[1:])
        at = batch.labels.to(distributed.device)
        if not bool(features.isfinite().all()):
            first = int(batch.labels[~features.isfinite().flatten(1).all(dim=1).cpu()][0])
            raise InputError(
                f"{views.split.where(first)}: {context.recipe.model['name']} gives features that are not finite; start "
                "from another --model"
            )
        values[at], readable[at] = features, 1
    values, readable = distributed.all_reduce(values), distributed.all_reduce(readable)
    return Features(values=values.cpu(), readable=readable.bool().cpu())
