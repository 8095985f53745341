"""The program in docs/elsewhere.md, which knows nothing of this package, gives the package's answers."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from lipsformer import load_predictor
from lipsformer.images.samples import SAMPLES
from tests.support.trained import Trained

DOCUMENT = Path(__file__).parents[2] / "docs" / "elsewhere.md"


def test_the_graph_alone_is_enough(trained: Trained, tmp_path: Path) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert "import lipsformer" not in program
    (tmp_path / "classify.py").write_text(program)
    graph, predictor = trained.bundle / "ort-fp32.onnx", load_predictor(trained.bundle, "cpu")
    found = set()
    for photo in sorted(SAMPLES.glob("*.jpg"))[:4]:
        done = subprocess.run(
            [sys.executable, tmp_path / "classify.py", graph, photo], capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == predictor.predict([photo])[0][0].label
        found.add(done.stdout)
    assert len(found) > 1
