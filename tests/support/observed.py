"""A server seen from outside: its responses, and the resources of its processes."""

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
ADVICE = ("send", "save", "scale", "let the HTTP client", "a whole number")  # how a detail says what to do


def verdict(status: int, headers: Mapping[str, str], body: bytes) -> str:
    """The outcome of an upload: "image", "images", or the reason of its refusal.

    Fails on any response that a client would not expect.
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
    """The reason in problem details, once these are checked."""
    reason, detail = str(problem["reason"]), problem["detail"]
    assert {**REFUSALS, **OF_THE_FORM}.get(reason) == problem["status"], shown
    assert any(word in detail for word in ADVICE), shown
    assert detail.isprintable(), shown
    assert "Traceback" not in detail, shown
    return reason


@dataclasses.dataclass(frozen=True, kw_only=True)
class Taken:
    """The resources of a tree of processes: their number, their open files, and their unshared bytes."""

    processes: int
    files: int
    memory: int


def taken(root: int) -> Taken:
    """The resources of the process `root` and all its descendants."""
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
    """The resources once the tree has `processes` again: replacing a killed decoder takes a moment."""
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
