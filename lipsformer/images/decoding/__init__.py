"""Decoding of untrusted images in separate processes, so that no file can hang, bloat or crash its reader."""

from __future__ import annotations

from .decoder import Decoded, check_system
from .pool import DecoderPool

__all__ = ["Decoded", "DecoderPool", "check_system"]
