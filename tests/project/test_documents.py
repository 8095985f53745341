"""The documents' links, paths and commands exist: on GitHub, in the tree, and on the website."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lipsformer import cli

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "benchmarks/**/*.md", "lipsformer/checkpoints/weights/*.md")
    for path in ROOT.glob(pattern)
)
TOP = "lipsformer|train|export|serving|tests|benchmarks|deploy|docs|examples|typings"


def prose(text: str) -> str:
    """A document without its code blocks."""
    return re.sub(r"```.*?```|^    .*?$", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(path: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub and the website make them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def broken_links(path: Path) -> Iterator[str]:
    """Links and pictures of a document that lead to no file or to no heading."""
    text = prose(path.read_text(encoding="utf-8"))
    found = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|srcset|href)="([^"]+)"', text)
    for link in found:
        target, _, anchor = link.partition("#")
        if re.match(r"https?:|mailto:", link):
            continue
        file = (path.parent / target).resolve() if target else path
        if not file.is_file() or (anchor and anchor not in anchors(file)):
            yield f"{path.name}: {link}"


def commands(path: Path) -> Iterator[list[str]]:
    """The words of each `lipsformer` command in a document's code."""
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    code = "\n".join([*re.findall(r"```sh\n(.*?)```", text, re.DOTALL), *re.findall(r"^    (.+)$", text, re.MULTILINE)])
    for line in re.findall(r"^(?:\w+=\S+ )?lipsformer (.+)$", code, re.MULTILINE):
        yield shlex.split(line, comments=True)


def test_every_link_leads_somewhere() -> None:
    assert len(DOCUMENTS) > 20
    assert [link for path in DOCUMENTS for link in broken_links(path)] == []


@pytest.mark.parametrize("text", ["[a](none.md)", "[a](b.md#c)", "![a](none.png)", '<img src="none.png">', "[a](#c)"])
def test_a_broken_link_is_seen(text: str, tmp_path: Path) -> None:
    (tmp_path / "b.md").write_text("# B")
    document = tmp_path / "a.md"
    document.write_text(f"# A\n\n{text} [fine](b.md#b) [fine](https://example.org)")
    assert len(list(broken_links(document))) == 1


def test_every_path_in_the_text_exists() -> None:
    missing = [
        f"{path.name}: {name}"
        for path in DOCUMENTS
        for name in re.findall(rf"`((?:{TOP})/[\w./-]*)`", prose(path.read_text(encoding="utf-8")))
        if not (ROOT / name).exists()
    ]
    assert missing == []


def test_every_command_in_the_documents_parses() -> None:
    """Names and options exist; what the commands do is tested elsewhere."""
    import typer.main

    group = typer.main.get_command(cli.app)
    found = [words for path in DOCUMENTS for words in commands(path)]
    assert len(found) > 30
    for name, *words in found:
        command = group.commands[name]  # type: ignore[attr-defined]
        while hasattr(command, "commands"):  # a group, as `data`
            name, *words = words
            command = command.commands[name]
        command.make_context(name, words)


@pytest.mark.slow
@pytest.mark.parametrize("text", ["[broken](none.md)", "[broken](style.md#none)", "![broken](none.png)"])
def test_a_broken_link_fails_the_website(text: str, tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="pip install 'lipsformer[docs]'")
    config = re.sub(r"^(docs|site)_dir: .*", "", (ROOT / "mkdocs.yml").read_text(), flags=re.MULTILINE)
    config = re.sub(r"^(nav|extra_css|plugins):.*?\n(?=\n|\Z)", "", config, flags=re.MULTILINE | re.DOTALL)
    (tmp_path / "mkdocs.yml").write_text(config)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "style.md").write_text("# Style")
    for content, status in (("# Home\n\n[fine](style.md#style)", 0), (f"# Home\n\n{text}", 1)):
        (tmp_path / "docs" / "index.md").write_text(content)
        build = subprocess.run(
            [sys.executable, "-m", "mkdocs", "build"], cwd=tmp_path, capture_output=True, check=False
        )
        assert build.returncode == status, build.stderr
