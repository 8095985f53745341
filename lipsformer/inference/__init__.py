"""Predictions from any MODEL; the runtimes behind them are in `runtimes/`."""
