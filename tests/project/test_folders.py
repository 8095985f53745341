"""The folder rule: a folder of source files holds few enough to be read at a glance."""

from __future__ import annotations

from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
SOURCES = ("lipsformer", "train", "export", "serving", "tests")
MOST = 16
ONE_FILE_A_COMMAND = "lipsformer/cli"


def crowded(root: Path, most: int) -> list[str]:
    """Folders of `root`'s source trees that hold more than `most` Python files, with their number."""
    found = []
    for folder in sorted({file.parent for top in SOURCES for file in (root / top).rglob("*.py")}):
        name, count = folder.relative_to(root).as_posix(), len(list(folder.glob("*.py")))
        if count > most and name != ONE_FILE_A_COMMAND:
            found.append(f"{name}: {count}")
    return found


def test_no_folder_is_crowded() -> None:
    assert crowded(REPOSITORY, MOST) == []
    visible = [entry.name for entry in (REPOSITORY / "lipsformer").iterdir() if entry.name != "__pycache__"]
    assert len(visible) <= MOST, sorted(visible)


def test_a_crowded_folder_is_seen(tmp_path: Path) -> None:
    for folder, count in (("lipsformer/model", MOST + 1), ("lipsformer/cli", MOST + 5), ("train", MOST)):
        (tmp_path / folder).mkdir(parents=True)
        for number in range(count):
            (tmp_path / folder / f"m{number}.py").touch()
    assert crowded(tmp_path, MOST) == [f"lipsformer/model: {MOST + 1}"]


@pytest.mark.parametrize("part", ["train", "export", "serving"])
def test_the_parts_are_links_in_the_package(part: str) -> None:
    link = REPOSITORY / "lipsformer" / part
    assert link.is_symlink()
    assert link.readlink() == Path("..", part)
