"""What preprocessing really decodes."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image

from lipsformer.images import preprocessing
from lipsformer.images.open import open_image

__all__ = ["decoded_sizes"]


@pytest.fixture
def decoded_sizes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The sizes at which `Preprocessing.read` decodes images from now on."""
    sizes = []

    def recorded(*arguments: Any, **options: Any) -> Image.Image:
        image = open_image(*arguments, **options)
        sizes.append(image.size)
        return image

    monkeypatch.setattr(preprocessing, "open_image", recorded)
    return sizes
