"""The table of commands, in the order in which `lipsformer --help` lists them."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from lipsformer import __version__

from .needs import CheckedCommand

__all__ = ["app"]

# Command -> the function or group of functions in its file.
COMMANDS = {
    "models": "models",
    "download": "download",
    "data": "data",
    "train": "train",
    "stability": "stability",
    "eval": "evaluate_model",
    "calibrate": "calibrate_model",
    "predict": "predict",
    "explain": "explain",
    "similar": "similar",
    "export": "export",
    "verify": "verify",
    "benchmark": "benchmark",
    "convert": "convert",
    "push": "push",
    "serve": "serve",
    "bento": "bento",
    "lipschitz": "lipschitz",
    "certify": "certify_model",
    "doctor": "doctor",
}

EXIT_STATUS = (
    "Exit status: 0 done; 1 a check failed, a training diverged or some images were rejected; 2 bad input or usage; "
    "130 interrupted; 143 ended by SIGTERM. `lipsformer COMMAND --help` explains a command."
)


class LazyCommands(Mapping[str, Any]):
    """The commands by name. Each is imported and built when it is looked up: `predict` does not wait for the others."""

    def __getitem__(self, name: str) -> Any:
        attribute = COMMANDS[name]
        found = getattr(importlib.import_module(f".{name}", __package__), attribute)
        if isinstance(found, typer.Typer):
            command: Any = typer.main.get_group(found)
        else:
            alone = typer.Typer(add_completion=False)
            alone.command(cls=CheckedCommand)(found)
            command = typer.main.get_command(alone)
        command.name = name
        return command

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)


class LazyGroup(TyperGroup):
    """The group of `LazyCommands`."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**{**attributes, "commands": LazyCommands()})


app = typer.Typer(
    cls=LazyGroup,
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
