"""Labelled images to train and evaluate on, from wherever they are kept.

Every source gives the same `Split`, so training, resume and evaluation do not know what they read from.
"""

from .dataset import ImageFolder, open_dataset, open_labelled
from .folder import find_images
from .split import Split

__all__ = ["ImageFolder", "Split", "find_images", "open_dataset", "open_labelled"]
