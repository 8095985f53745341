"""The names that gave way to the field's own are gone: from the code, the recipes and the documents."""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = ("lipsformer", "train", "export", "serving")
TREES = (*SOURCES, "tests", "benchmarks", "examples", "docs")

RETIRED_NAMES = {
    "Processes", "join_processes", "add_up", "unsynchronised", "Purpose", "TrainingBatches", "check_rate",
    "parse_state", "recompute", "reference_batch", "rate_factor", "crop_fraction", "drop_draws", "keep_weights",
    "CosineSimilarity", "DotProduct", "build_similarity", "convolve", "mix_channels", "split_windows", "merge_windows",
    "initialise", "publish_file", "publish_directory", "Outcomes", "Smallest", "Served", "Classifying", "Bodies",
    "turned_away", "Optimisers", "optimiser", "optimisers", "normalise", "Normalise", "quantise", "summarise",
}  # fmt: skip
RETIRED_MODULES = {
    "draws", "pace", "panel", "start", "stop", "similarity", "network", "initialise", "outputs", "outcomes", "choosing",
    "machine", "complexity", "mates", "figures", "nvidia", "trt", "ort", "quantise", "optimisation", "door", "served",
    "forms", "keys", "pages", "connections", "packing", "observing", "processes", "rate_check", "trials",
}  # fmt: skip
KEPT_MODULES = {"export/folding/network.py"}  # the folded network
# What reads older files knows their keys.
EXEMPT = {"lipsformer/system/renamed_keys.py", "tests/e2e/test_older_files.py", "tests/project/test_names.py"}
EXEMPT_TREE = "tests/e2e/older/"


def files(trees: tuple[str, ...], *endings: str) -> Iterator[Path]:
    """Files of these trees, but those that are exempt."""
    for path in (path for tree in trees for ending in endings for path in sorted((ROOT / tree).rglob(ending))):
        name = path.relative_to(ROOT).as_posix()
        if name not in EXEMPT and not name.startswith(EXEMPT_TREE):
            yield path


def words(text: str, kind: str) -> Iterator[str]:
    """The names in a file: identifiers of Python, keys of TOML, and what Markdown has between backticks."""
    if kind == ".py":
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        yield from (token.string for token in tokens if token.type == tokenize.NAME)
    elif kind == ".toml":
        yield from re.findall(r"^(\w+) *=", text, re.MULTILINE)
    else:
        yield from (word for code in re.findall(r"`[^`]+`", text) for word in re.findall(r"\w+", code))


def test_the_old_names_are_gone() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in files(TREES, "*.py", "*.toml", "*.md")
        for name in sorted(RETIRED_NAMES & set(words(path.read_text(), path.suffix)))
    ]
    assert not found, "\n".join(found)


def test_the_old_modules_are_gone() -> None:
    names = [path.relative_to(ROOT).as_posix() for path in files(SOURCES, "*.py") if path.stem in RETIRED_MODULES]
    assert set(names) == KEPT_MODULES


def test_an_old_name_is_seen() -> None:
    assert "split_windows" in words("from .windows import split_windows  # not convolve\n", ".py")
    assert "convolve" not in words("from .windows import split_windows  # not convolve\n", ".py")
    assert list(words("recompute = true\n# flip = 1\n", ".toml")) == ["recompute"]
    assert list(words("Bodies, and `train(recompute=1)`", ".md")) == ["train", "recompute", "1"]
