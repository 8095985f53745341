"""TensorRT engines, built from exported graphs."""
