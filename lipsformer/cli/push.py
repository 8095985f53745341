"""`lipsformer push`."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["push"]


def push(
    model: Annotated[str, typer.Argument(help="Checkpoint (.safetensors), or a name from `lipsformer models`.")],
    repository: Annotated[
        str,
        typer.Argument(metavar="hf:OWNER/NAME[@BRANCH]", help="Repository of the Hugging Face Hub; created if new."),
    ],
    private: Annotated[
        bool | None, typer.Option(help="Visibility of a new repository.", show_default="your settings")
    ] = None,
    license_id: Annotated[
        str | None,
        typer.Option("--license", metavar="ID", help="License of the model, such as apache-2.0, for the card."),
    ] = None,
    message: Annotated[str | None, typer.Option(help="Commit message.")] = None,
    replace_card: Annotated[
        bool, typer.Option("--replace-card", help="Write the model card again if the repository has one.")
    ] = False,
) -> None:
    """Upload a checkpoint to the Hugging Face Hub, with a model card. Log in with `hf auth login` first."""
    from lipsformer.integrations.hub import push_to_hub

    url = push_to_hub(
        model, repository, private=private, license_id=license_id, message=message, replace_card=replace_card
    )
    typer.echo(url)
