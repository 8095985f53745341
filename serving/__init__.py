"""The HTTP service: limits before decoding, micro-batches in one process, one preprocessing, answers with a reason."""

from __future__ import annotations

from .launch import serve

__all__ = ["serve"]
