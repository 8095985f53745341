"""timm models: importing this registers every variant, so that `timm.create_model("lipsformer_swin_tiny")` works.

Parameters keep LipsFormer's names, so these models and `lipsformer train` read each other's weights.
"""

from lipsformer.system.extras import require

require("timm")

from .model import TimmLipsFormer, TimmLipsFormerCSwin, TimmLipsFormerSwin  # noqa: E402
from .registry import default_cfgs  # noqa: E402

__all__ = ["TimmLipsFormer", "TimmLipsFormerCSwin", "TimmLipsFormerSwin", "default_cfgs"]
