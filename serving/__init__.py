"""Serving a bundle over HTTP: bounded uploads, decoding in threads, micro-batches in front of one runtime."""

from __future__ import annotations

from .launch import serve

__all__ = ["serve"]
