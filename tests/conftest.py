"""What several test files share."""

from __future__ import annotations

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # before PyTorch is imported: workers share the cores, one thread each
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import pytest

from tests.support.command import run
from tests.support.http.browser import browser, page
from tests.support.http.server import keyed, server
from tests.support.images.decoded_sizes import decoded_sizes
from tests.support.models.acceptance import choosy
from tests.support.nursery import nursery, only_nursery
from tests.support.trained import explained, trained

__all__ = [
    "browser",
    "choosy",
    "decoded_sizes",
    "explained",
    "keyed",
    "nursery",
    "only_nursery",
    "page",
    "reference",
    "run",
    "samples",
    "server",
    "trained",
]

REPOSITORY = Path(__file__).parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Runs the files with slow tests first, so that no process ends long after the others; leaves out needless ones.

    Tests that need a GPU are left out where PyTorch sees none.
    """
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
    needy = [item for item in items if item.get_closest_marker("gpu")]
    if not needy:
        return
    import torch

    if not torch.cuda.is_available():
        for item in needy:
            item.add_marker(pytest.mark.skip(reason="needs a GPU, and PyTorch sees none"))


@pytest.fixture(scope="session")
def samples() -> list[Path]:
    """The 14 real photos that come with the package, one per kind of fruit."""
    found = sorted((REPOSITORY / "lipsformer" / "images" / "samples").glob("*.jpg"))
    assert len(found) == 14
    return found


@pytest.fixture(scope="session")
def reference() -> Path:
    """The folder of the official code's checkpoint and outputs; it lies beside the repository, where there is one."""
    folder = REPOSITORY.parent / "shared" / "reference"
    if not folder.is_dir():
        pytest.skip(f"no {folder}: the official reference files are not part of a clone")
    return folder
