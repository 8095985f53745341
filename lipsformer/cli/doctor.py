"""`lipsformer doctor`."""

from __future__ import annotations

import typer

from .options import Json, print_json

__all__ = ["doctor"]


def doctor(as_json: Json = False) -> None:
    """Examine this machine: devices, providers, versions, conflicts, and what to install."""
    from lipsformer.doctor import examine, render

    report = examine()
    if as_json:
        print_json(report)
    else:
        typer.echo(render(report))
