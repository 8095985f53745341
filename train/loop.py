"""The training loop: augment, forward, backward, step, average; a step that is not finite changes nothing."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lipsformer.model.pixel_norm import PixelNormalize
from lipsformer.system.errors import LipsFormerError
from lipsformer.train.augment.pipeline import Augmentation
from lipsformer.train.data.dataset import Batch
from lipsformer.train.data.rng import Stream, generator
from lipsformer.train.data.sampler import EpochSampler, split_batch
from lipsformer.train.listeners.pace import Progress
from lipsformer.train.optim.schedule import learning_rate

from .distributed import DistributedContext
from .recipe import Recipe
from .signals import StopRequest
from .state import TrainingState

__all__ = ["DivergedError", "Setting", "train_epoch"]

MAX_SKIPPED_IN_A_ROW = 20


class DivergedError(LipsFormerError):
    """The loss or its gradient was not finite for 20 steps in a row.

    `step` is the first of these, counted from 0; `record` is what there is to tell of the epoch that was not finished.
    """

    def __init__(self, step: int, record: dict[str, Any]) -> None:
        self.step = step
        self.record = record
        super().__init__(
            f"step {step + MAX_SKIPPED_IN_A_ROW}: the loss or its gradient was not finite for {MAX_SKIPPED_IN_A_ROW} "
            "steps in a row; the checkpoints of earlier epochs are intact: lower the learning rate "
            "(--set learning_rate=...) and train again"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """What stays the same throughout a training."""

    recipe: Recipe
    distributed: DistributedContext
    sampler: EpochSampler
    normalize: PixelNormalize
    augmentation: Augmentation

    def autocast(self) -> torch.autocast:
        """The context in which the model computes."""
        device = self.distributed.device
        return torch.autocast(device.type, torch.bfloat16, enabled=self.recipe.autocasts(device))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """One step over all processes: sums of the loss and of right answers over its images, and the gradient's norm."""

    images: int
    loss: float
    correct: float
    norm: float
    stop: bool

    @property
    def finite(self) -> bool:
        """Whether its gradient can be followed."""
        return math.isfinite(self.loss + self.norm)


def train_epoch(
    state: TrainingState,
    batches: Iterator[Batch],
    setting: Setting,
    stop: StopRequest,
    after_step: Callable[[Batch, Progress], None],
) -> bool:
    """Trains `state` in place to the end of its epoch; False if a process was asked to stop before.

    `after_step` is called after each step with its batch and what it came to. A step whose loss or gradient is not
    finite leaves the weights as they are, and is counted.

    Raises:
        DivergedError: after 20 such steps in a row.
    """
    state.model.train()
    order, recipe = setting.sampler, setting.recipe
    while state.step < (state.epoch + 1) * order.steps_per_epoch:
        started = time.perf_counter()
        batch = next(batches)
        waited = time.perf_counter() - started
        rate = learning_rate(state.step, order.total, recipe.peak_rate)
        state.optimizers.set_lr(rate)
        step = take_step(state, batch, setting, stop=bool(stop.signal))
        _count(state, step)
        state.step += 1
        seconds = time.perf_counter() - started
        state.sums.time(step.images, waited, seconds)
        progress = Progress(
            epoch=state.epoch,
            step_in_epoch=(state.step - 1) % order.steps_per_epoch,
            loss=step.loss / step.images if step.finite else None,
            top1=step.correct / step.images if step.finite else None,
            learning_rate=rate,
            images=step.images,
            wait_seconds=waited,
            seconds=seconds,
            skipped=state.skipped,
        )
        after_step(batch, progress)
        if step.stop:
            return False
    return True


def take_step(state: TrainingState, batch: Batch, setting: Setting, *, stop: bool = False) -> Step:
    """One optimization step on this process's share of the step's images, in `grad_accum_steps` parts.

    The gradient is that of the mean loss over the images of all processes, however they are shared: all that is drawn
    at random is drawn for the whole batch. `stop` says that this process was asked to end.
    """
    recipe, distributed = setting.recipe, setting.distributed
    images = len(setting.sampler.positions(state.step))
    params = setting.augmentation.sample(recipe.seed, state.step, images)
    drop = drop_path_noise(state, recipe.seed, images)
    parts = split_batch(images, distributed.world_size * recipe.grad_accum_steps)
    parts = parts[distributed.rank * recipe.grad_accum_steps : (distributed.rank + 1) * recipe.grad_accum_steps]
    # Sums of the loss, of right answers, of the gradient's norm, and of those who were asked to stop.
    sums = torch.zeros(4, dtype=torch.float64, device=distributed.device)
    state.optimizers.zero_grad()
    for part in parts:
        local = slice(part.start - parts[0].start, part.stop - parts[0].start)
        pixels = batch.pixels[local].to(distributed.device, non_blocking=True)
        labels = batch.labels[local].to(distributed.device, non_blocking=True)
        inputs, targets = setting.augmentation.apply(
            pixels, labels, params.part(part.start, part.stop), setting.normalize
        )
        with distributed.no_sync(state.network, part is not parts[-1]):
            with setting.autocast():
                logits = state.network(inputs, drop[..., part].to(distributed.device))
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            loss = F.cross_entropy(logits, targets.to(logits.dtype), reduction="sum")
            # Processes average their gradients; the sum over them is wanted.
            (loss * (distributed.world_size / images)).backward()  # type: ignore[no-untyped-call]
        sums[0] += loss.detach()
        sums[1] += (logits.detach().argmax(dim=1) == targets.argmax(dim=1)).sum()
    sums[2] = nn.utils.clip_grad_norm_(state.model.parameters(), recipe.clip_grad)
    sums[3] = float(stop)
    total = distributed.all_reduce(sums).tolist()
    step = Step(images=images, loss=total[0], correct=total[1], norm=total[2], stop=total[3] > 0)
    if step.finite:
        state.optimizers.step()
        state.average.update_parameters(state.model)
    return step


def drop_path_noise(state: TrainingState, seed: int, images: int) -> Tensor:
    """What decides stochastic depth in a step, for all its `images`: (blocks, branches, images), uniform in 0..1."""
    draws = generator(seed, Stream.DROP_PATH, state.step).random(state.model.drop_path_shape(images), "float32")
    return torch.from_numpy(draws)


def _count(state: TrainingState, step: Step) -> None:
    """Takes a step into the sums of the epoch."""
    index = state.step % state.sums.steps
    if step.finite:
        state.skipped_in_a_row = 0
        state.sums.add(index, step.loss, step.correct, step.images)
        return
    state.sums.skip()
    state.skipped_in_a_row += 1
    if state.skipped_in_a_row == MAX_SKIPPED_IN_A_ROW:
        raise DivergedError(state.step + 1 - MAX_SKIPPED_IN_A_ROW, state.sums.record())
