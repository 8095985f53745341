"""`lipsformer bento`."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["bento"]


def bento(
    model: Annotated[
        str, typer.Argument(help="Bundle folder; or a checkpoint or lipsformer_cifar10, which is exported first.")
    ],
    name: Annotated[str | None, typer.Option(help="The Bento's name.", show_default="lipsformer-classifier")] = None,
    version: Annotated[str | None, typer.Option(help="Its version; by default one that BentoML makes up.")] = None,
    gpu: Annotated[bool, typer.Option("--gpu", help="For NVIDIA GPUs; with TensorRT, if the bundle needs it.")] = False,
    precision: Annotated[
        str | None, typer.Option(help="Which of the bundle's precisions its image runs; by default the first.")
    ] = None,
) -> None:
    """Pack a bundle with its server as a Bento, from which `bentoml containerize` makes an image."""
    from lipsformer.bundle.pretrained import resolve_model
    from lipsformer.serving.bento.package import NAME, pack

    bundle = resolve_model(model)
    if bundle.suffix == ".safetensors":
        from lipsformer.export import cached_bundle

        bundle = cached_bundle(bundle)
    packed = pack(bundle, name=name or NAME, version=version, gpu=gpu, precision=precision)
    typer.echo(f"{packed.tag}: {packed.size / 1e6:.1f} MB in {packed.path}")
    typer.echo(f"  bentoml serve {packed.tag}          # try it here")
    typer.echo(f"  bentoml containerize {packed.tag}   # make its image; needs Docker, or Podman: --backend podman")
