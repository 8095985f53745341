"""The network with its crop and resize in front: one ONNX file for programs that have no Pillow."""
