"""Which optional packages are installed, and the line about one that is not."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest

from lipsformer.system import extras
from lipsformer.system.errors import InputError


def test_a_module_is_found_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "whole.py").write_text("raise SystemExit('it was imported')")
    (tmp_path / "folder").mkdir()  # such as a user's own `tensorboard/`, which Python takes for a package
    monkeypatch.syspath_prepend(tmp_path)
    assert extras.is_installed("whole")
    assert not extras.is_installed("folder")
    assert not extras.is_installed("nothing.at.all")
    monkeypatch.setitem(sys.modules, "stand_in", types.ModuleType("stand_in"))  # it has no spec
    assert extras.is_installed("stand_in")
    monkeypatch.setitem(sys.modules, "whole", None)
    assert not extras.is_installed("whole")


def test_the_message_names_packages_and_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "is_installed", lambda module: module == "torch")
    extras.require("train", "torch")
    with pytest.raises(InputError, match=r"^Matplotlib is not installed; pip install 'lipsformer\[train\]'$"):
        extras.require("train")
    with pytest.raises(ImportError, match=r"^--output: Matplotlib, Jinja2 are not installed; pip install 'lips"):
        extras.require("report", what="--output")


@pytest.mark.parametrize(
    ("module", "extra"),
    [("torch.nn", "train"), ("matplotlib", "report"), ("onnx", "export"), ("pyarrow.parquet", "data")],
)
def test_an_import_that_fails_names_the_extra(module: str, extra: str) -> None:
    found = extras.missing_package(ModuleNotFoundError("No module", name=module))
    assert str(found).endswith(f"is not installed; pip install 'lipsformer[{extra}]'")


def test_an_unknown_module_stays_an_error_of_python() -> None:
    error = ModuleNotFoundError("No module", name="torchlight")
    assert extras.missing_package(error) is error
