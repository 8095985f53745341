"""`lipsformer data check`: duplicates, leakage between splits, label conflicts, and odd or unreadable images."""

from .page import write_check
from .report import Check, check_dataset
from .text import format_check

__all__ = ["Check", "check_dataset", "format_check", "write_check"]
