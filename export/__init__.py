"""From a checkpoint to a bundle: an ONNX graph that is proved equal to it, with everything needed to use it."""

from __future__ import annotations

from .bundle import cached_bundle, export_bundle

__all__ = ["cached_bundle", "export_bundle"]
