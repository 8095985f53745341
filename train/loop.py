"""The training loop: augment, forward, backward, optimizer step, weight average."""

from __future__ import annotations

import dataclasses
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
from lipsformer.train.distillation.distiller import Distiller, TeacherError
from lipsformer.train.optim.schedule import learning_rate

from .distributed import DistributedContext
from .margin import BOUND_EVERY, add_margin, margin_at, running_bound
from .metrics import StepMetrics
from .recipe import Recipe
from .signals import StopRequest
from .state import TrainingState

__all__ = ["DivergedError", "TrainContext", "take_step", "train_epoch"]

MAX_SKIPPED_IN_A_ROW = 20


class DivergedError(LipsFormerError):
    """The loss or its gradient was not finite for 20 steps in a row.

    `step` is the first of these, counted from 0. `unfinished` holds the training metrics of the epoch under way.
    """

    def __init__(self, step: int, unfinished: dict[str, Any]) -> None:
        self.step = step
        self.unfinished = unfinished
        super().__init__(
            f"step {step + MAX_SKIPPED_IN_A_ROW}: the loss or its gradient was not finite for {MAX_SKIPPED_IN_A_ROW} "
            "steps in a row; the checkpoints of earlier epochs are intact: lower the learning rate "
            "(--set learning_rate=...) and train again"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainContext:
    """Everything a training step needs that does not change during a training; no `distiller` without a teacher.

    `std` is what the preprocessing divides colors by, for the margin loss.
    """

    recipe: Recipe
    distributed: DistributedContext
    sampler: EpochSampler
    normalize: PixelNormalize
    augmentation: Augmentation
    distiller: Distiller | None = None
    std: tuple[float, ...] = (1.0, 1.0, 1.0)

    def autocast(self) -> torch.autocast:
        """The precision of the forward pass, as a context manager."""
        device = self.distributed.device
        return torch.autocast(device.type, torch.bfloat16, enabled=self.recipe.autocasts(device))


def train_epoch(
    state: TrainingState,
    batches: Iterator[Batch],
    context: TrainContext,
    stop: StopRequest,
    after_step: Callable[[Batch, StepMetrics], None],
) -> bool:
    """Trains `state` in place to the end of its epoch. Returns False if a process was asked to stop before that.

    `after_step` receives each step's batch and metrics. A step whose loss or gradient is not finite is skipped: it is
    counted and leaves the weights unchanged.

    Raises:
        DivergedError: after 20 skipped steps in a row.
        TeacherError: if outputs of the teacher are not finite.
    """
    state.model.train()
    sampler, peak = context.sampler, context.recipe.peak_rate
    while state.step < (state.epoch + 1) * sampler.steps_per_epoch:
        started = time.perf_counter()
        batch = next(batches)
        waited = time.perf_counter() - started
        rate = learning_rate(state.step, sampler.total, peak)
        step = take_step(state, batch, context, rate, stop=bool(stop.signal))
        step = dataclasses.replace(
            step,
            seconds=time.perf_counter() - started,
            data_seconds=waited,
            skipped=state.skipped + (not step.finite),
        )
        state.sums.add(step)
        state.skipped_in_a_row = 0 if step.finite else state.skipped_in_a_row + 1
        if state.skipped_in_a_row == MAX_SKIPPED_IN_A_ROW:
            raise DivergedError(step.step - MAX_SKIPPED_IN_A_ROW, state.sums.means())
        state.step = step.step
        after_step(batch, step)
        if step.stop:
            return False
    return True


def take_step(
    state: TrainingState, batch: Batch, context: TrainContext, rate: float, *, stop: bool = False
) -> StepMetrics:
    """Takes one optimization step on this process's share of the step's images, in `grad_accum_steps` parts.

    The gradient is that of the mean loss over the images of all processes. All random numbers are drawn for the whole
    batch, so the result does not depend on how it is shared. `stop` says that this process was asked to stop.

    Raises:
        TeacherError: if outputs of the teacher are not finite.
    """
    recipe, distributed = context.recipe, context.distributed
    images = len(context.sampler.positions(state.step))
    params = context.augmentation.sample(recipe.seed, state.step, images)
    drop = drop_path_noise(state, recipe.seed, images)
    reach = margin_reach(state, context)
    parts = split_batch(images, distributed.world_size * recipe.grad_accum_steps)
    parts = parts[distributed.rank * recipe.grad_accum_steps : (distributed.rank + 1) * recipe.grad_accum_steps]
    # Sums of what `compute_losses` returns, of gradient norms, and of processes that were asked to stop.
    sums = torch.zeros(6, dtype=torch.float64, device=distributed.device)
    state.optimizers.set_lr(rate)
    state.optimizers.zero_grad()
    for part in parts:
        local = slice(part.start - parts[0].start, part.stop - parts[0].start)
        pixels = batch.pixels[local].to(distributed.device, non_blocking=True)
        labels = batch.labels[local].to(distributed.device, non_blocking=True)
        inputs, targets = context.augmentation.apply(
            pixels, labels, params.part(part.start, part.stop), context.normalize
        )
        with distributed.no_sync(state.network, part is not parts[-1]):
            noise = drop[..., part].to(distributed.device)
            head = None if reach is None else state.model.head.weight
            losses = compute_losses(state.network, inputs, targets, noise, context, reach=reach, head=head)
            # Processes average their gradients, but the gradient of the sum is needed.
            (losses[0] * (distributed.world_size / images)).backward()  # type: ignore[no-untyped-call]
        sums[:4] += torch.stack([value.detach().double() for value in losses])
    sums[4] = nn.utils.clip_grad_norm_(state.network.parameters(), recipe.clip_grad)
    sums[5] = float(stop)
    total = distributed.all_reduce(sums).tolist()
    if context.distiller is not None and total[3]:
        raise TeacherError(state.step + 1, context.distiller.teacher)
    step = StepMetrics(
        epoch=state.epoch + 1,
        step=state.step + 1,
        images=images,
        loss_sum=total[0],
        correct=total[1],
        grad_norm=total[4] / distributed.world_size,
        learning_rate=rate,
        stop=total[5] > 0,
        distillation_sum=None if context.distiller is None else total[2],
    )
    if step.finite:
        state.optimizers.step()
        state.average.update_parameters(state.model)
    return step


def margin_reach(state: TrainingState, context: TrainContext) -> float | None:
    """How far the features can move in the ball of this step's margin loss; None with another loss.

    The bound is that of the weights at every 50th step, and kept in the state in between.
    """
    recipe = context.recipe
    if recipe.loss != "margin":
        return None
    if state.bound is None or state.step % BOUND_EVERY == 0:
        state.bound = running_bound(state.model, context.std)
    return state.bound * margin_at(state.step, context.sampler.total, recipe.margin, recipe.margin_ramp)


def compute_losses(
    network: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    drop: Tensor,
    context: TrainContext,
    *,
    reach: float | None = None,
    head: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sums over a part of a batch: the loss to minimize, correct predictions, the distillation loss, and how many
    outputs of the teacher are not finite.

    Args:
        network: the model; with a teacher, the student.
        inputs: normalized images (B, 3, S, S).
        targets: soft targets (B, K).
        drop: noise of stochastic depth.
        context: that of the training.
        reach: of the margin loss, with the weights of the head (K, C), which read the features.
    """
    distiller = context.distiller
    taught = None if distiller is None else distiller.targets(inputs, context.autocast())
    with context.autocast():
        outputs = network(inputs, drop)
    logits, answers = (outputs, outputs) if distiller is None else outputs
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    labels = targets.argmax(dim=1)
    correct = (logits.detach().argmax(dim=1) == labels).sum()
    if reach is not None and head is not None:
        logits = add_margin(logits, labels, head.to(logits.dtype), reach)
    loss = F.cross_entropy(logits, targets.to(logits.dtype), reduction="sum")
    if distiller is None or taught is None:
        none = torch.zeros_like(loss)
        return loss, correct, none, none
    distillation = distiller.loss(answers, taught)
    total = (1 - distiller.weight) * loss + distiller.weight * distillation
    return total, correct, distillation, (~taught.isfinite()).sum()


def drop_path_noise(state: TrainingState, seed: int, images: int) -> Tensor:
    """Noise of stochastic depth for all `images` of a step: (blocks, branches, images), uniform in [0, 1)."""
    draws = generator(seed, Stream.DROP_PATH, state.step).random(state.model.drop_path_shape(images), "float32")
    return torch.from_numpy(draws)
