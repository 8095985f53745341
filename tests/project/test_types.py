"""mypy sees through the commands into train, export and serving: a wrong argument there is an error."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CALLS = {
    "run_training(Path(), output=Path())": "run_training(Path(), output='runs')",
    "export_bundle(Path(), Path())": "export_bundle(Path(), Path(), settings={'precision': 'int8'})",
    "serve(Path(), host='::1', port=1)": "serve(Path(), host='::1', port='1')",
}
HEAD = """
from pathlib import Path
from lipsformer.export import export_bundle
from lipsformer.serving import serve
from lipsformer.train import run_training
"""


@pytest.mark.slow
def test_a_wrong_argument_in_a_command_fails_mypy(tmp_path: Path) -> None:
    right, wrong = tmp_path / "right.py", tmp_path / "wrong.py"
    right.write_text("\n".join((HEAD, *CALLS)))
    wrong.write_text("\n".join((HEAD, *CALLS.values())))
    command = [sys.executable, "-m", "mypy", "--config-file", ROOT / "pyproject.toml", right, wrong]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    errors = [line for line in done.stdout.splitlines() if ": error: " in line]
    assert len(errors) == len(CALLS), done.stdout + done.stderr
    assert all("wrong.py" in line and "[arg-type]" in line for line in errors), errors
