"""Export of a checkpoint to a bundle: graphs and engines with the same outputs, and everything needed to use them.

The names below are imported when first used: a process that only builds an engine starts without PyTorch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lipsformer.system.extras import import_public

if TYPE_CHECKING:
    from lipsformer.export.parity.thresholds import read_thresholds
    from lipsformer.export.web.runtime import read_runtime
    from lipsformer.export.web.site import write_web

    from .bundle import cached_bundle, export_bundle
    from .settings import ExportSettings
    from .triton import write_triton
    from .verify import verify_bundle

__all__ = [
    "ExportSettings",
    "cached_bundle",
    "export_bundle",
    "read_runtime",
    "read_thresholds",
    "verify_bundle",
    "write_triton",
    "write_web",
]

_HOMES = {
    "ExportSettings": "settings",
    "cached_bundle": "bundle",
    "export_bundle": "bundle",
    "read_runtime": "web.runtime",
    "read_thresholds": "parity.thresholds",
    "verify_bundle": "verify",
    "write_triton": "triton",
    "write_web": "web.site",
}


def __getattr__(name: str) -> Any:
    return import_public(__name__, _HOMES, name)
