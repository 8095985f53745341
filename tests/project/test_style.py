"""The rules of docs/style.md that a machine can check: retired words, American spelling, the README's length."""

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
    r"(?:behavi|col|neighb|fav|hon)our(?:s|ed|ing)?|labelled|grey|centre[sd]?|licence": "American: -or, labeled",
    r"(?:normal|optim|initial|quant|organ|recogn|serial|minim|maxim)is(?:e(?:s|d|rs?)?|ing|ations?)": "American: -ize",
}
MOST_WORDS = 950  # of the README, as `wc -w` counts them
PATTERN = re.compile(
    "|".join(rf"(?P<w{number}>\b(?:{words})\b)" for number, words in enumerate(RETIRED)), re.IGNORECASE
)

# Theorems are proved, and the style guide quotes what it retires.
# The prefix of tensors in training states keeps its spelling: it is a file format.
*_, OUR, ISE = RETIRED
ALLOWED = {
    "docs/style.md": RETIRED,
    "lipsformer/model/lipschitz/": ("proof|proved|proven",),
    "export/int8/bound.py": ("proof|proved|proven",),
    "lipsformer/evaluation/speed/report.py": ("proof|proved|proven",),  # a key of benchmark.json
    "train/state.py": (ISE,),
    "export/parity/": (OUR,),  # the limit `neighbours`: an option and a key of manifests
}


def documents() -> Iterator[Path]:
    """Every file whose text people read."""
    yield from (
        ROOT / name
        for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "bentofile.yaml", "Makefile", ".ci/run")
    )
    yield from sorted((ROOT / "docs").rglob("*.md"))
    yield from sorted((ROOT / "benchmarks").rglob("*.md"))
    yield from sorted((ROOT / "lipsformer" / "checkpoints" / "weights").glob("*.md"))
    yield from sorted(file for file in (ROOT / "deploy").rglob("*") if file.suffix in (".json", ".yaml", ".yml"))
    yield ROOT / "examples" / "quickstart.py"
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
     "leave it away", "in processes of its own", "beside the server", "train it anew", "the proof", "grey neighbours",
     "it is quantised", "its normalisation", "a labelled photo"],
)  # fmt: skip
def test_retired_words_are_seen(text: str) -> None:
    assert retired(text, "README.md")


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= MOST_WORDS


def test_percentages_have_no_space() -> None:
    documents_only = (path for path in documents() if path.suffix in (".md", ".toml"))
    assert [path.name for path in documents_only if re.search(r"\d %", path.read_text(encoding="utf-8"))] == []


def test_code_and_theorems_may_keep_them() -> None:
    assert retired("`told` is an argument", "README.md") == []
    assert retired("the bound is proved", "lipsformer/model/lipschitz/bounds.py") == []
    assert retired("the bound is proved", "lipsformer/model/blocks.py") != []
