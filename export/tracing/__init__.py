"""Tracing of a network to an ONNX graph."""
