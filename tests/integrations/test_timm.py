"""The variants in timm; in_timm.py has the tests.

timm imports torchvision, and PyPI's torchvision next to the CPU build of PyTorch breaks whatever imports it, such as
torchmetrics. So both lie in a folder of the environment that only this test adds to the path.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(sys.prefix) / "timm"  # where the Makefile installs the two
ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_timm() -> None:
    if not FOLDER.is_dir() and importlib.util.find_spec("timm") is None:
        pytest.skip(f"pip install --no-deps --target {FOLDER} timm torchvision")
    paths = [str(ROOT), str(FOLDER), *filter(None, [os.environ.get("PYTHONPATH")])]
    plugins = ["-p", "no:cacheprovider", "-p", "tests.support.models.torchvision_operators"]
    command = [sys.executable, "-m", "pytest", "-n", "0", *plugins, "tests/integrations/in_timm.py"]
    result = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
