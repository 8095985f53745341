"""Labeled images to train and evaluate on, from wherever they are kept.

Every source gives the same `Split`, so training, resume and evaluation do not know what they read from.
"""

from .dataset import ImageFolder, open_dataset, open_labeled
from .split import Split
from .walk import find_images

__all__ = ["ImageFolder", "Split", "find_images", "open_dataset", "open_labeled"]
