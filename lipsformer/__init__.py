"""LipsFormer: a Lipschitz-continuous vision transformer, with training, verified export and serving.

The names below are imported when first used, so that importing this package stays cheap.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lipsformer.checkpoints.checkpoint import Checkpoint, load_checkpoint
    from lipsformer.checkpoints.save import save_checkpoint
    from lipsformer.images.preprocessing import Preprocessing
    from lipsformer.inference.classification import Prediction
    from lipsformer.inference.predictor import Predictor, load_predictor
    from lipsformer.integrations.hub import LipsFormer
    from lipsformer.model.factory import create_model
    from lipsformer.system.errors import GateError, InputError, LipsFormerError

__all__ = [
    "Checkpoint",
    "GateError",
    "InputError",
    "LipsFormer",
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
    "Checkpoint": "checkpoints.checkpoint",
    "GateError": "system.errors",
    "InputError": "system.errors",
    "LipsFormer": "integrations.hub",
    "LipsFormerError": "system.errors",
    "Prediction": "inference.classification",
    "Predictor": "inference.predictor",
    "Preprocessing": "images.preprocessing",
    "create_model": "model.factory",
    "load_checkpoint": "checkpoints.checkpoint",
    "load_predictor": "inference.predictor",
    "save_checkpoint": "checkpoints.save",
}

# In a checkout train/, export/ and serving/ are links. Where there are none (in a Bento, since BentoML does not copy
# links, and on Windows without `core.symlinks`) the three folders lie next to this one.
if not Path(__file__).with_name("serving").is_dir():
    __path__.append(str(Path(__file__).parents[1]))


def __getattr__(name: str) -> Any:
    from .system.extras import import_public

    return import_public(__name__, _HOMES, name)


def __dir__() -> list[str]:
    return __all__
