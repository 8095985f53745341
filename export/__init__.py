"""From a checkpoint to a bundle: graphs and engines that are proved equal to it, with everything needed to use them."""

from __future__ import annotations

from lipsformer.export.parity.thresholds import read_thresholds

from .bundle import cached_bundle, export_bundle
from .settings import ExportSettings
from .triton import write_triton
from .verify import verify_bundle

__all__ = ["ExportSettings", "cached_bundle", "export_bundle", "read_thresholds", "verify_bundle", "write_triton"]
