"""Decoding strangers' images in processes of their own, so that no file can hang, bloat or crash the server."""

from __future__ import annotations

from .pool import DecoderPool

__all__ = ["DecoderPool"]
