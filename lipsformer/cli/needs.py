"""What each command needs besides the core, checked before it starts, so that nothing is computed in vain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import typer
from typer.core import TyperCommand

from lipsformer.system.extras import missing_packages, pip_command, require

__all__ = ["NEEDS", "CheckedCommand", "missing_command"]

TORCH = ("train", "torch")

# Command -> extras, each with the modules of it that are needed; by default all of them. What depends on the kind of
# model (predict, explain, eval, similar), on where it goes (push) or on an option is checked where it is used.
NEEDS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "models": (TORCH,),
    "train": (("train",),),
    "stability": (("train",),),
    "calibrate": (TORCH,),
    "export": (("export",), ("cpu",)),
    "verify": (("cpu",),),
    "benchmark": (TORCH,),
    "convert": (TORCH,),
    "push": (TORCH,),
    "serve": (("serve",), ("cpu",)),
    "bento": (("serve",),),
    "lipschitz": (TORCH,),
    "certify": (("train",),),
}


class CheckedCommand(TyperCommand):
    """A command that is refused in one line if a package that it needs is missing. Its help is always shown."""

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        """Runs the command.

        Raises:
            MissingPackageError: if a package is missing.
        """
        for extra, *modules in NEEDS.get(str(self.name), ()):
            require(extra, *modules)
        return super().invoke(ctx)


def missing_command(command: str) -> str | None:
    """The pip command that a command needs here; None if it works."""
    return next(
        (pip_command(extra) for extra, *modules in NEEDS.get(command, ()) if missing_packages(extra, *modules)), None
    )
