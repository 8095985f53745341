"""Class names from JSON data and files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lipsformer.bundle.class_names import normalized, parse_class_names, read_classes
from lipsformer.system.errors import InputError


@pytest.mark.parametrize("name", ["caf\udce9", "\ud800", "a\udcff\udcfe"])
def test_names_of_older_models_that_are_not_text_become_escapes(name: str) -> None:
    """Older versions accepted folders whose names are not UTF-8; such a name cannot be sent over HTTP."""
    (found,) = parse_class_names(json.loads(json.dumps([name])))
    assert found.encode() == name.encode("utf-8", "backslashreplace")
    assert parse_class_names([found]) == (found,)


def test_other_names_stay_as_they_are() -> None:
    names = ["café", "cafe\u0301", "", "a\nb", "\N{PILE OF POO}"]
    assert parse_class_names(names) == tuple(names)
    assert normalized(names[0]) == normalized(names[1])


@pytest.mark.parametrize("value", [None, "ab", [1], {"a": "b"}, ["a", None]])
def test_what_is_no_list_of_names_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match="not a list of strings"):
        parse_class_names(value)


@pytest.mark.parametrize("text", ["a\nb", "a\r\nb\n", '["a", "b"]', "\ufeffa\nb"])
def test_files_of_names(text: str, tmp_path: Path) -> None:
    (tmp_path / "classes").write_bytes(text.encode())
    assert read_classes(tmp_path / "classes", 2) == ("a", "b")
    with pytest.raises(InputError, match="2 class names for 3 outputs"):
        read_classes(tmp_path / "classes", 3)
