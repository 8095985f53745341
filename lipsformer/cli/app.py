"""The table of commands, in the order in which `lipsformer --help` lists them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from lipsformer import __version__

from .benchmark import benchmark
from .bento import bento
from .calibrate import calibrate_model
from .certify import certify_model
from .convert import convert
from .data import data
from .doctor import doctor
from .download import download
from .eval import evaluate_model
from .export import export
from .lipschitz import lipschitz
from .models import models
from .predict import predict
from .push import push
from .serve import serve
from .similar import similar
from .stability import stability
from .train import train
from .verify import verify

__all__ = ["app"]

COMMANDS: dict[str, Callable[..., None] | typer.Typer] = {
    "models": models,
    "download": download,
    "data": data,
    "train": train,
    "stability": stability,
    "eval": evaluate_model,
    "calibrate": calibrate_model,
    "predict": predict,
    "similar": similar,
    "export": export,
    "verify": verify,
    "benchmark": benchmark,
    "convert": convert,
    "push": push,
    "serve": serve,
    "bento": bento,
    "lipschitz": lipschitz,
    "certify": certify_model,
    "doctor": doctor,
}

EXIT_STATUS = (
    "Exit status: 0 done; 1 a check failed, a training diverged or some images were rejected; 2 bad input or usage; "
    "130 interrupted; 143 ended by SIGTERM. `lipsformer COMMAND --help` explains a command."
)

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train LipsFormer, export it with verified parity, and serve it over HTTP.",
    epilog=EXIT_STATUS,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lipsformer {__version__}")
        raise typer.Exit


@app.callback()
def lipsformer(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Options of the group itself."""


for name, command in COMMANDS.items():
    if isinstance(command, typer.Typer):
        app.add_typer(command, name=name)
    else:
        app.command(name)(command)
