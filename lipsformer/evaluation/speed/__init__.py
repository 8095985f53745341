"""`lipsformer benchmark`: how fast models are beside each other, what memory they take, how equal their answers are."""

from .measure import BATCHES, measure_speed, parse_batches
from .report import BenchmarkReport, render
from .write import write_report

__all__ = ["BATCHES", "BenchmarkReport", "measure_speed", "parse_batches", "render", "write_report"]
