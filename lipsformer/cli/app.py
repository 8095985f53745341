"""The table of commands, in the order in which `lipsformer --help` lists them."""

from __future__ import annotations

from collections.abc import Callable

import typer

from .benchmark import benchmark
from .bento import bento
from .convert import convert
from .data import data
from .doctor import doctor
from .eval import evaluate_model
from .export import export
from .lipschitz import lipschitz
from .models import models
from .predict import predict
from .serve import serve
from .stability import stability
from .train import train
from .verify import verify

__all__ = ["app"]

COMMANDS: dict[str, Callable[..., None]] = {
    "models": models,
    "data": data,
    "train": train,
    "stability": stability,
    "eval": evaluate_model,
    "predict": predict,
    "export": export,
    "verify": verify,
    "benchmark": benchmark,
    "convert": convert,
    "serve": serve,
    "bento": bento,
    "lipschitz": lipschitz,
    "doctor": doctor,
}

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train LipsFormer, export it with proof, and serve it.",
)
for name, command in COMMANDS.items():
    app.command(name)(command)
