<<<<<<< HEAD
"""LipsFormer in other libraries' terms."""
=======
"""Other libraries: the Hugging Face Hub and timm."""
>>>>>>> a
