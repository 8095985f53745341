"""The state of a training before its first step."""

from __future__ import annotations

from collections.abc import Sequence

from lipsformer.train.data.rng import Stream, seed_torch
from lipsformer.train.distillation.distiller import Distiller
from lipsformer.train.distillation.student import Student, train_projection
from lipsformer.train.optim.ema import average_weights
from lipsformer.train.optim.optimizers import build_optimizers
from lipsformer.train.optim.param_groups import freeze_stages
from lipsformer.train.optim.spectral_cap import SpectralCap

from .distributed import DistributedContext
from .initial_weights import StartingPoint
from .metrics import EpochSums
from .recipe import Recipe
from .state import TrainingState

__all__ = ["initial_state"]


def initial_state(
    recipe: Recipe,
    start: StartingPoint,
    classes: Sequence[str],
    distributed: DistributedContext,
    distiller: Distiller | None,
    steps_per_epoch: int,
) -> TrainingState:
    """The model for `classes`, its average and its optimizers, on the device and in the recipe's precision.

    Raises:
        InputError: if the weights of `start` do not fit its configuration.
    """
    seed_torch(recipe.seed, Stream.WEIGHTS)
    model = start.build_model(classes).to(distributed.device, recipe.dtype)
    model.grad_checkpointing = recipe.grad_checkpointing
    freeze_stages(model, recipe.freeze)
    if recipe.spectral_cap:
        SpectralCap(model, recipe.spectral_cap).start()
    student = None if distiller is None else Student(model, distiller.features).to(distributed.device, recipe.dtype)
    network = distributed.wrap(student or model)
    average = average_weights(model, recipe.ema_decay).eval()
    if recipe.compile:
        (student or model).compile()
    optimizers = build_optimizers(model, recipe)
    projection = None if student is None else student.projection
    if projection is not None:
        train_projection(projection, optimizers, recipe.weight_decay)
    return TrainingState(
        model=model,
        network=network,
        average=average,
        optimizers=optimizers,
        sums=EpochSums(steps_per_epoch),
        projection=projection,
    )
