"""`lipsformer data check`: duplicates, leakage between splits, label conflicts, and odd or unreadable images."""

from .report import Check, check_dataset

__all__ = ["Check", "check_dataset"]
