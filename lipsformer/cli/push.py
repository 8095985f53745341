"""`lipsformer push`."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["push"]


def push(
    model: Annotated[str, typer.Argument(help="Checkpoint (.safetensors), or a name from `lipsformer models`.")],
    target: Annotated[
        str,
        typer.Argument(
            metavar="hf:OWNER/NAME[@BRANCH]|mlflow:NAME",
            help="Repository of the Hugging Face Hub, or model in MLflow's registry; created if new.",
        ),
    ],
    private: Annotated[
        bool | None, typer.Option(help="Visibility of a new repository of the Hub.", show_default="your settings")
    ] = None,
    license_id: Annotated[
        str | None,
        typer.Option("--license", metavar="ID", help="License of the model, such as apache-2.0."),
    ] = None,
    message: Annotated[str | None, typer.Option(help="Commit message, or description of the version.")] = None,
    replace_card: Annotated[
        bool, typer.Option("--replace-card", help="Write the model card again if the repository of the Hub has one.")
    ] = False,
) -> None:
    """Upload a checkpoint with a model card to the Hugging Face Hub or to MLflow's registry.

    For the Hub, log in with `hf auth login` first. MLFLOW_TRACKING_URI says where the registry is.
    """
    if not target.startswith("mlflow:"):
        from lipsformer.integrations.hub import push_to_hub

        typer.echo(
            push_to_hub(
                model, target, private=private, license_id=license_id, message=message, replace_card=replace_card
            )
        )
        return
    from lipsformer.integrations.mlflow import push_to_mlflow
    from lipsformer.system.errors import InputError

    if private is not None or replace_card:
        raise InputError(f"{target}: --private, --no-private and --replace-card are for the Hub; omit them")
    typer.echo(push_to_mlflow(model, target, license_id=license_id, message=message))
