"""`lipsformer serve`."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["serve"]


def serve(
    model: Annotated[
        str, typer.Argument(help="Bundle folder; or a checkpoint or lipsformer_cifar10, which is exported first.")
    ],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for every network.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 3000,
    workers: Annotated[
        int | None,
        typer.Option(envvar="LIPSFORMER_WORKERS", help="Server processes; by default one for each GPU or four cores."),
    ] = None,
    device: Annotated[str, typer.Option(envvar="LIPSFORMER_DEVICE", help="auto, cpu or cuda.")] = "auto",
    precision: Annotated[
        str | None,
        typer.Option(envvar="LIPSFORMER_PRECISION", help="Which of the bundle's precisions; by default its first."),
    ] = None,
    watch: Annotated[
        int | None,
        typer.Option(
            envvar="LIPSFORMER_WATCH",
            help="Seconds between looks for a newer bundle, which takes over once it is checked and warm.",
        ),
    ] = None,
) -> None:
    """Serve a model over HTTP: POST /classify, and a page to drop photos on at /."""
    from lipsformer.bundle.pretrained import resolve_model
    from lipsformer.serving import serve as serve_bundle

    bundle = resolve_model(model)
    if bundle.suffix == ".safetensors":
        from lipsformer.export import cached_bundle

        bundle = cached_bundle(bundle)
    serve_bundle(bundle, host=host, port=port, workers=workers, device=device, precision=precision, watch=watch)
