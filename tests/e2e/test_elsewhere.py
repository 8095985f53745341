"""The programs in docs/elsewhere.md, which know nothing of this package, give the package's answers."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from lipsformer import load_predictor
from lipsformer.export import ExportSettings, export_bundle
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


def compiler_flags() -> list[str]:
    """Flags for ONNX Runtime, as the document has them, or none where CPATH and LIBRARY_PATH lead to it."""
    flags = []
    if shutil.which("pkg-config"):
        done = subprocess.run(["pkg-config", "--cflags", "--libs", "libonnxruntime"], capture_output=True, text=True)
        flags = done.stdout.split() if done.returncode == 0 else []
    return flags or ["-lonnxruntime"]


def test_the_cpp_program_takes_a_photo_of_any_size(trained: Trained, tmp_path: Path) -> None:
    (program,) = re.findall(r"```cpp\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    headers = "\n".join(re.findall(r"#include <(?:onnxruntime|cstdio|jpeg).*", program))
    (tmp_path / "headers.cpp").write_text(headers)
    (tmp_path / "classify.cpp").write_text(program)
    flags = compiler_flags()
    if not shutil.which("g++") or subprocess.run(["g++", "-fsyntax-only", tmp_path / "headers.cpp", *flags]).returncode:
        pytest.skip("no g++, libjpeg or ONNX Runtime with its header")
    command = ["g++", "-Wall", "-Wextra", "-Werror", tmp_path / "classify.cpp", "-o", tmp_path / "classify", *flags]
    subprocess.run([*command, "-ljpeg"], check=True)
    export_bundle(trained.checkpoint, tmp_path / "bundle", ExportSettings(whole_image=True, parity_images=2))
    predictor = load_predictor(trained.bundle, "cpu")
    for path, size in zip(sorted(SAMPLES.glob("*.jpg")), [(348, 348), (200, 311), (640, 90)], strict=False):
        photo = tmp_path / path.name
        with Image.open(path) as original:
            original.resize(size).save(photo, quality=95)
        predicted = predictor.predict([photo])[0][0]
        done = subprocess.run(
            [tmp_path / "classify", tmp_path / "bundle" / "whole-image.onnx", photo], capture_output=True, text=True
        )
        index, score = done.stdout.split()
        assert int(index) == predicted.index
        assert float(score) == pytest.approx(predicted.score, abs=1e-3)
