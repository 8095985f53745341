"""The parts of a bulk prediction: checked, put together, and written as rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lipsformer.system.atomic import draft_directory
from lipsformer.system.console import say, track
from lipsformer.system.errors import InputError

from . import stores
from .output import Output
from .rows import OK
from .settings import Part
from .state import BulkState

__all__ = ["check_same", "merge_parts", "summary", "write_rows"]

NOT_IN_METADATA = ("sources", "column")  # may be long
LONGEST = 80  # characters of a difference between settings


def merge_parts(output: str, parts: Iterable[str | Path], state: Path | None = None) -> None:
    """Writes the rows of all parts to `output`, the same bytes as those of an undivided prediction.

    One part is open at a time. Meanwhile as much space as the parts take is needed next to `output`, or in the folder
    `state` if it is given.

    Args:
        output: see `predict_to_file`.
        parts: the files that `--part` wrote; in an object store, patterns too.
        state: a folder for temporary files.

    Raises:
        InputError: if a part is missing, given twice, unfinished, or of another prediction, or `output` exists.
    """
    target = Output.of(output, state)
    target.check_free()
    with draft_directory(target.state) as draft:
        files = dict(_files(map(str, parts), draft))
        _check(files, target.name)
        with BulkState(draft / "merged") as merged:
            with track("merge", len(files)) as advance:
                for name, path in files.items():
                    with BulkState(path, name) as part:
                        merged.take(part)
                    if path.parent == draft:
                        path.unlink()  # it was downloaded
                    advance(1, name)
            write_rows(target, merged)
            say(f"{target.name}: {summary(merged.counts())}", always=True)


def _files(names: Iterable[str], draft: Path) -> Iterable[tuple[str, Path]]:
    """The parts by name. Those in an object store are downloaded."""
    for name in names:
        if not stores.is_object(name):
            if not Path(name).is_file():
                raise InputError(f"{name}: no such part; give the files that --part wrote")
            yield name, Path(name)
            continue
        wild = any(sign in name for sign in stores.WILD)
        found = stores.matching(name) if wild else [name] if stores.exists(name) else []
        if not found:
            raise InputError(f"{name}: no such part; give the objects that --part wrote")
        for number, one in enumerate(found):
            path = draft / f"{len(list(draft.iterdir()))}-{number}"
            stores.download(one, path)
            yield one, path


def _check(files: Mapping[str, Path], output: str) -> None:
    """Checks that these are all parts of one prediction.

    Raises:
        InputError: if they are not.
    """
    numbers: dict[str, str] = {}
    first = ""
    facts: dict[str, Any] = {}
    for name, path in files.items():
        with BulkState(path, name) as state:
            if not state.finished:
                raise InputError(f"{name}: not finished; run its command again first")
            number = str(state.facts.get("part"))
            if number in numbers:
                raise InputError(f"{name}: part {number}, as {numbers[number]} is; give each part once")
            numbers[number] = name
            first, facts = first or name, facts or state.facts
            check_same(state, facts, f"of another prediction than {first}")
    total = Part.parse(str(facts["part"])).total
    if missing := [one for one in (f"{k}/{total}" for k in range(1, total + 1)) if one not in numbers]:
        raise InputError(f"{output}: part {missing[0]} is missing ({len(missing)} of {total} are); give all parts")


def check_same(state: BulkState, facts: Mapping[str, Any], problem: str) -> None:
    """Checks that the rows of a state belong with those of another one.

    Raises:
        InputError: if they do not; it says what differs.
    """
    known, wanted = state.facts.get("identity", {}), facts["identity"]
    differing = []
    for name in wanted:
        if known.get(name) != wanted[name]:
            values = f"{name} {known.get(name)}, now {wanted[name]}"
            differing.append(values if len(values) < LONGEST else f"another {name}")
    ours, theirs = (Part.parse(str(one["part"])).total for one in (state.facts, facts))
    listings = {one["listing_sha256"] for one in (state.facts, facts) if "listing_sha256" in one}
    if ours != theirs:
        differing.append(f"{ours} parts, now {theirs}")
    elif len(listings) > 1:
        differing.append("another list of images")
    if differing:
        raise InputError(f"{state.name}: {problem} ({'; '.join(differing)})")


def write_rows(target: Output, state: BulkState) -> None:
    """Writes all rows of a state to `target`.

    Raises:
        InputError: if they cannot be written.
    """
    facts = state.facts
    metadata = {name: fact for name, fact in facts["identity"].items() if name not in NOT_IN_METADATA}
    target.write(
        (row for _, row in state.rows()),
        features=(state.channels() or 1) if facts["identity"]["features"] else None,
        metadata={"model": facts["model"], **metadata},
    )


def summary(counts: Mapping[str, int]) -> str:
    """The numbers of images by status, "ok" first and then the most frequent."""
    order = sorted(counts.items(), key=lambda item: (item[0] != OK, -item[1], item[0]))
    listed = ", ".join(f"{count:,} {status}" for status, count in order)
    return f"{sum(counts.values()):,} images" + (f": {listed}" if listed else "")
