"""LipsFormer: a Lipschitz-continuous vision transformer with training, proven export and serving.

The names below are imported when first used, so that importing this package stays cheap.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .checkpoint import Checkpoint, load_checkpoint, save_checkpoint
    from .errors import GateError, InputError, LipsFormerError
    from .models import create_model
    from .prediction import Prediction, Predictor, load_predictor
    from .preprocessing import Preprocessing

__all__ = [
    "Checkpoint",
    "GateError",
    "InputError",
    "LipsFormerError",
    "Prediction",
    "Predictor",
    "Preprocessing",
    "__version__",
    "create_model",
    "load_checkpoint",
    "load_predictor",
    "save_checkpoint",
]

__version__ = "0.1.0"

_HOMES = {
    "Checkpoint": "checkpoint",
    "GateError": "errors",
    "InputError": "errors",
    "LipsFormerError": "errors",
    "Prediction": "prediction",
    "Predictor": "prediction",
    "Preprocessing": "preprocessing",
    "create_model": "models",
    "load_checkpoint": "checkpoint",
    "load_predictor": "prediction",
    "save_checkpoint": "checkpoint",
}

# In a checkout train/, export/ and serving/ lie beside this folder; an installed wheel has them inside it.
if not (Path(__file__).parent / "train").is_dir():
    __path__.append(str(Path(__file__).parent.parent))


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
