"""Linear probe: a softmax head fitted to convergence on the features of a frozen network."""

from __future__ import annotations

from .probe import Probe
from .settings import check_method

__all__ = ["Probe", "check_method"]
