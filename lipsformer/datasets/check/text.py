"""The findings in a line each, for the terminal and the head of the page."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from lipsformer.system.console import printable

from .duplicates import Cluster
from .odd import FEW
from .report import Check, counted

__all__ = ["Finding", "findings", "format_check", "headline"]

MANY = 3  # names in a line


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked for: what was found, how bad it is, and its section of the page (`anchor`)."""

    anchor: str
    title: str
    text: str
    level: Literal["fine", "note", "bad"]


def headline(check: Check) -> str:
    """The numbers of images, classes and splits in one line."""
    counts = check.counts().sum(axis=1).tolist()
    splits = ", ".join(f"{split.name} {n:,}" for split, n in zip(check.scan.splits, counts, strict=True))
    classes = len(check.scan.classes)
    return f"{counted(len(check.scan), 'image')} in {classes:,} class{'' if classes == 1 else 'es'} ({splits})"


def findings(check: Check) -> list[Finding]:
    """All that was looked for, the worst first."""
    unreadable = {reason: len(images) for reason, images in check.unreadable.items()}
    left_out = {reason: entry["count"] for reason, entry in check.left_out.to_dict().items()}
    odd = {what: len(images) for what, images in check.odd.items()}
    small = [f"{found.name} ({found.images} in {found.split})" for found in check.small_classes]
    inside = [cluster for cluster in check.clusters if len(cluster.splits) == 1]
    rows: list[tuple[str, str, str, Literal["note", "bad"]]] = [
        ("leaks", "Duplicates across splits", _clusters(check, check.leaks), "bad"),
        ("groups", "Groups across splits", _some(list(check.groups)), "bad"),
        ("conflicts", "One picture, several labels", _clusters(check, check.conflicts), "bad"),
        ("unreadable", "Unreadable images", _sum(unreadable), "bad"),
        ("duplicates", "Duplicates inside a split", _clusters(check, inside), "note"),
        ("small", f"Classes under {FEW} images", _some(small), "note"),
        ("odd", "Odd images", _sum(odd), "note"),
        ("left-out", "Left out", _sum(left_out), "note"),
    ]
    nothing = {} if check.grouped else {"groups": "not checked: --group says what a group is"}
    return [
        Finding(anchor=anchor, title=title, text=text or nothing.get(anchor, "none"), level=level if text else "fine")
        for anchor, title, text, level in rows
    ]


def format_check(check: Check) -> str:
    """Text for the terminal."""
    rows = findings(check)
    width = max(len(row.title) for row in rows)
    lines = [f"{printable(check.data)}: {headline(check)}", ""]
    return "\n".join([*lines, *(f"{row.title:{width}}  {printable(row.text)}" for row in rows)])


def _clusters(check: Check, clusters: Sequence[Cluster]) -> str:
    if not clusters:
        return ""
    images = sum(len(cluster.members) for cluster in clusters)
    shown = " = ".join(check.scan.name(index) for index in clusters[0].members[:2])
    return f"{counted(len(clusters), 'cluster')} of {images:,} images, such as {shown}"


def _sum(counts: Mapping[Any, int]) -> str:
    parts = ", ".join(f"{number:,} {what.replace('_', ' ')}" for what, number in counts.items())
    return f"{sum(counts.values()):,} ({parts})" if counts else ""


def _some(names: Iterable[str]) -> str:
    found = list(names)
    if not found:
        return ""
    return f"{len(found):,}: {', '.join(found[:MANY])}{', ...' if len(found) > MANY else ''}"
