"""The retired words of docs/style.md stay out of what people read: documents, help, messages, docstrings, comments."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ("lipsformer", "train", "export", "serving")

RETIRED = {
    r"rightly": "correctly",
    r"mend(s|ed|ing)?": "fix",
    r"go(es)? on|going on|went on|gone on": "continue, resume",
    r"tells?|told": "say, report, show",
    r"be had": "available, supported",
    r"(leave|left|leaving) away|(leave|left) it away": "omit",
    r"of (its|their|his) own": "separate",
    r"beside": "next to, compared with",
    r"anew": "again",
    r"likeliest": "most likely",
    r"strangers?'?s?": "untrusted",
    r"for want of": "without",
    r"in the midst": "during",
    r"by turns": "in turn",
    r"buys": "gives",
    r"proof|proved|proven": "parity check, verified",
}
PATTERN = re.compile(
    "|".join(rf"(?P<w{number}>\b(?:{words})\b)" for number, words in enumerate(RETIRED)), re.IGNORECASE
)

# Theorems are proved; the style guide quotes what it retires; GitHub's templates are not ours; benchmark.json has a key
# of that name.
PROOF = ("proof|proved|proven",)
ALLOWED = {
    "docs/style.md": RETIRED,
    "lipsformer/lipschitz/": PROOF,
    "lipsformer/evaluation/speed/report.py": PROOF,
    "docs/": (),
}


def documents() -> Iterator[Path]:
    """Everything that people read."""
    yield from (ROOT / name for name in ("README.md", "CONTRIBUTING.md", "bentofile.yaml", "Makefile"))
    yield from sorted((ROOT / "docs").rglob("*.md"))
    yield from sorted((ROOT / "benchmarks").rglob("*.md"))
    yield from sorted((ROOT / "train" / "recipes").glob("*.toml"))
    for source in SOURCES:
        yield from sorted((ROOT / source).rglob("*.py"))
    yield from sorted((ROOT / "serving" / "http" / "page").glob("*.*s"))


def retired(text: str, name: str) -> list[str]:
    """Where `text` uses a retired word, with what to write instead."""
    allowed = {words for place, some in ALLOWED.items() if name.startswith(place) for words in some}
    found = []
    for match in PATTERN.finditer(re.sub(r"`[^`\n]*`", "", text)):
        words = list(RETIRED)[int((match.lastgroup or "w0")[1:])]
        if words not in allowed:
            line = text.count("\n", 0, match.start()) + 1
            found.append(f"{name}:{line}: '{match[0]}': write {RETIRED[words]}")
    return found


def test_no_retired_word_is_left() -> None:
    found = [line for path in documents() for line in retired(path.read_text(), path.relative_to(ROOT).as_posix())]
    assert not found, "\n".join([f"{len(found)} places", *found])


@pytest.mark.parametrize(
    "text",
    ["66 % were rightly named", "how to mend it", "the run goes on", "it is told in one line", "it cannot be had",
     "leave it away", "in processes of its own", "beside the server", "train it anew", "the proof"],
)  # fmt: skip
def test_retired_words_are_seen(text: str) -> None:
    assert retired(text, "README.md")


def test_code_and_theorems_may_keep_them() -> None:
    assert retired("`told` is an argument", "README.md") == []
    assert retired("the bound is proved", "lipsformer/lipschitz/bounds.py") == []
    assert retired("the bound is proved", "lipsformer/model/blocks.py") != []
