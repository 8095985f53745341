"""What tests of training share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.tiny_training import make_photos


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four photos of each of three classes to train on, and one to validate on."""
    return make_photos(tmp_path_factory.mktemp("photos") / "photos")
