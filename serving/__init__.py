"""The HTTP service: an ASGI application (app.py) and the BentoML service that runs it (bento/)."""

from __future__ import annotations

from .launch import serve

__all__ = ["serve"]
