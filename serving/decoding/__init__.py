"""Decoding of untrusted images in separate processes, so that no file can hang, bloat or crash the server."""

from __future__ import annotations

from .pool import DecoderPool

__all__ = ["DecoderPool"]
