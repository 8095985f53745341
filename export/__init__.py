"""From a checkpoint to a bundle: an ONNX graph that is proved equal to it, with everything needed to use it."""

from __future__ import annotations

from .bundle import export_bundle

__all__ = ["export_bundle"]
