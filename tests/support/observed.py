"""What a service is from outside: what its answers say, and what its processes take."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.images.odd import REFUSALS

__all__ = ["Taken", "settled", "taken", "verdict"]

# Reasons of a refused upload that are the form's, not the image's.
OF_THE_FORM = {
    "missing_field": 400, "malformed_form": 400, "several_images": 400, "bad_top_k": 400, "too_many_images": 413,
    "wrong_content_type": 415, "not_a_file": 422,
}  # fmt: skip
MENDING = ("send", "save", "scale", "let the HTTP client", "a whole number")  # how a detail says what to do


def verdict(status: int, headers: Mapping[str, str], body: bytes) -> str:
    """What became of an upload: "image", "images", or the reason of its refusal.

    Fails on whatever a client could not expect.
    """
    shown = f"{status}: {body[:300]!r}"
    assert status < 500, shown
    answer: dict[str, Any] = json.loads(body)
    assert headers["x-content-type-options"] == "nosniff", shown
    if status == 200 and "results" in answer:
        assert answer["results"], shown
        for result in answer["results"]:
            assert result.get("predictions") or _reason(result["problem"], shown) in REFUSALS, shown
        return "images"
    if status == 200:
        assert answer["predictions"], shown
        return "image"
    assert headers["content-type"] == "application/problem+json", shown
    assert answer["status"] == status, shown
    return _reason(answer, shown)


def _reason(problem: dict[str, Any], shown: str) -> str:
    """The reason in problem details, after a look at them."""
    reason, detail = str(problem["reason"]), problem["detail"]
    assert {**REFUSALS, **OF_THE_FORM}.get(reason) == problem["status"], shown
    assert any(word in detail for word in MENDING), shown
    assert detail.isprintable(), shown
    assert "Traceback" not in detail, shown
    return reason


@dataclasses.dataclass(frozen=True, kw_only=True)
class Taken:
    """What a tree of processes holds: how many they are, their open files, and the bytes that they do not share."""

    processes: int
    files: int
    memory: int


def taken(root: int) -> Taken:
    """What the process `root` and all its descendants hold now."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:  # gone meanwhile
            continue
    tree = {root}
    while grown := {pid for pid, parent in parents.items() if parent in tree} - tree:
        tree |= grown
    held = [_held(Path(f"/proc/{pid}")) for pid in tree]
    return Taken(processes=len(held), files=sum(files for files, _ in held), memory=sum(size for _, size in held))


def settled(root: int, processes: int, seconds: float = 20.0) -> Taken:
    """What the tree holds once it has `processes` again: a decoder that was killed takes a moment to be replaced."""
    end = time.monotonic() + seconds
    while (found := taken(root)).processes != processes:
        assert time.monotonic() < end, f"{found.processes} processes instead of {processes}"
        time.sleep(0.1)
    return found


def _held(process: Path) -> tuple[int, int]:
    try:
        files = len(list((process / "fd").iterdir()))
        lines = (process / "smaps_rollup").read_text().splitlines()
    except OSError:
        return 0, 0
    return files, sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) * 1024
