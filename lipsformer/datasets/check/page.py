"""The report: a folder with one HTML page that needs no other file, and the same as JSON."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lipsformer.datasets.reader import Split
from lipsformer.system.atomic import atomic_directory
from lipsformer.system.console import printable
from lipsformer.system.errors import InputError

from .duplicates import Cluster
from .fingerprint import viewable
from .odd import FEW, ODD
from .report import Check
from .scan import NAMED, Scan
from .text import findings, headline

__all__ = ["JSON", "PAGE", "write_check"]

PAGE, JSON = "index.html", "check.json"
HERE = Path(__file__).parent
MOST_CLUSTERS, MOST_PHOTOS = 24, 8  # in a section; photos of a cluster, or of a kind of odd images
MOST_ROWS = 200  # of a table
THUMBNAIL = 176  # pixels
KINDS = {"exact": "Exact duplicates", "near": "Near duplicates", "mirrored": "Mirrored duplicates"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tile:
    """A photo on the page: its thumbnail as a data URI, empty if it cannot be read, and what stands below it."""

    source: str
    name: str
    split: str
    label: str
    note: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """Photos in a row: `total` are there, of which the first few are shown."""

    title: str
    total: int
    tiles: list[Tile]


def write_check(check: Check, folder: Path) -> None:
    """Writes the page and the JSON document into a new folder, atomically.

    Raises:
        InputError: if the folder exists or cannot be written.
    """
    with atomic_directory(folder) as draft:
        (draft / JSON).write_text(json.dumps(check.to_dict(), indent=1), encoding="ascii")
        (draft / PAGE).write_text(render(check), encoding="utf-8")


def render(check: Check) -> str:
    """The page. Its size is bounded: sections show the first of many and give the total."""
    import jinja2

    style = (HERE / "page.css").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["shown"] = printable
    return environment.get_template("page.html").render(
        style=style,
        # Chromium hashes the text between the tags, as it stands.
        style_hash=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
        title=check.data,
        headline=headline(check),
        findings=findings(check),
        clusters=_cluster_sections(check),
        odd=[
            _row(check, f"{what.replace('_', ' ').capitalize()}: {ODD[what]}", images.tolist(), what)
            for what, images in check.odd.items()
        ],
        few=FEW,
        most=MOST_ROWS,
        json=JSON,
        **_tables(check),
    )


def _cluster_sections(check: Check) -> list[dict[str, Any]]:
    """Sections of rows of photos that belong together."""
    groups = [
        _row(check, f"Group {name}", images)
        for name, images in sorted(check.groups.items(), key=lambda item: -len(item[1]))[:MOST_CLUSTERS]
    ]
    inside = [cluster for cluster in check.clusters if len(cluster.splits) == 1]
    return [
        {"anchor": "leaks", "total": len(check.leaks), "rows": _rows(check, check.leaks)},
        {"anchor": "groups", "total": len(check.groups), "rows": groups},
        {"anchor": "conflicts", "total": len(check.conflicts), "rows": _rows(check, check.conflicts)},
        {"anchor": "duplicates", "total": len(inside), "rows": _rows(check, inside)},
    ]


def _rows(check: Check, clusters: Sequence[Cluster]) -> list[Row]:
    return [_row(check, KINDS[cluster.kind], cluster.members) for cluster in clusters[:MOST_CLUSTERS]]


def _row(check: Check, title: str, images: Sequence[int], what: str = "") -> Row:
    """Images in a row; `what` is what is odd about them."""
    return Row(title=title, total=len(images), tiles=[_tile(check, index, what) for index in _varied(check, images)])


def _varied(check: Check, images: Sequence[int]) -> Iterable[int]:
    """The images to show: one of each split and class first, so that what differs is seen."""
    first: dict[tuple[int, int], int] = {}
    for index in images:
        first.setdefault((int(check.scan.split_of[index]), int(check.scan.labels[index])), index)
    chosen = list(first.values())[:MOST_PHOTOS]
    rest = (index for index in images if index not in set(chosen))
    return sorted([*chosen, *(index for index, _ in zip(rest, range(MOST_PHOTOS - len(chosen)), strict=False))])


def _tile(check: Check, index: int, what: str) -> Tile:
    scan = check.scan
    split, position = scan.place(index)
    return Tile(
        source=_thumbnail(split, position),
        name=split.image_name(position),
        split=split.name,
        label=scan.classes[scan.labels[index]],
        note=_note(scan, index, what),
    )


def _note(scan: Scan, index: int, what: str) -> str:
    """The property of an image that is odd."""
    if what in ("small", "large", "narrow"):
        return f"{scan.records[index]['width']} × {scan.records[index]['height']}"  # noqa: RUF001
    name = what.removeprefix("rare_")
    return scan.names[name][scan.codes[name][index]] if name in NAMED else ""


def _thumbnail(split: Split, position: int) -> str:
    try:
        rgb = viewable(split.open(position, smallest=lambda _: (THUMBNAIL, THUMBNAIL)))
    except InputError:  # unreadable, or gone since it was checked
        return ""
    rgb.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    rgb.save(buffer, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _tables(check: Check) -> dict[str, Any]:
    scan = check.scan
    counts = check.counts()
    order = np.argsort(-counts.sum(axis=0), kind="stable")[:MOST_ROWS].tolist()
    return {
        "splits": [split.name for split in scan.splits],
        "totals": counts.sum(axis=1).tolist(),
        "classes": [(scan.classes[label], counts[:, label].tolist()) for label in order],
        "class_count": len(scan.classes),
        "largest": int(counts.sum(axis=0).max(initial=1)),
        "unreadable": [
            (scan.name(index), reason.replace("_", " "), scan.problems.get(index, ""))
            for reason, images in check.unreadable.items()
            for index in images[:MOST_ROWS].tolist()
        ][:MOST_ROWS],
        "left_out": check.left_out.lines(check.data),
        "small": check.small_classes[:MOST_ROWS],
        "small_count": len(check.small_classes),
        "sizes": check.sizes(),
        "tallies": {f"{what}s": check.tally(what) for what in NAMED},
        "turned": int(scan.turned.sum()),
    }
