"""Other libraries: the Hugging Face Hub and timm."""
