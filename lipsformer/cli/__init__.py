"""The `lipsformer` command: `lipsformer NAME` is NAME.py, a thin function over the modules that it imports."""

from .app import app
from .main import main

__all__ = ["app", "main"]
