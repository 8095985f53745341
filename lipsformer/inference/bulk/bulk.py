"""Bulk prediction: from sources to one file of rows, resumable, and in parts that are merged."""

from __future__ import annotations

import contextlib
import heapq
import operator
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lipsformer.images.decoding import check_system
from lipsformer.inference.predictor import Predictor
from lipsformer.system.atomic import write_errors
from lipsformer.system.console import say, track
from lipsformer.system.errors import InputError

from .copies import copy_images
from .engine import Workers, predict_images
from .pipeline import Pipeline
from .rows import OK, Row
from .settings import BulkOptions, Part, identity
from .state import BulkState
from .writers import Output

__all__ = ["merge_parts", "predict_to_file"]

NOT_IN_METADATA = ("sources", "column")  # may be long
LONGEST = 80  # characters of a difference between settings


def predict_to_file(
    predictor: Predictor, options: BulkOptions, output: str, workers: Callable[[], Workers] | None = None
) -> None:
    """Predicts all images of the sources and writes their rows to `output`.

    `workers`, made in the event loop, compute the rows; by default the pipeline of this machine.

    The state lies next to it until it is complete: OUTPUT.partial, or for a part OUTPUT.part-K-of-N, which stays. A
    call with the same arguments resumes it, and gives the same bytes as one that was never stopped.

    Raises:
        InputError: if `output` exists, was begun with other settings, or cannot be written; if this is not Linux.
        StoppedError: after SIGINT or SIGTERM; the state is kept.
        TooManyFailuresError: if more than `max_failures` images are refused; the state is kept.
    """
    check_system()
    target = Output.of(output)
    if options.features and getattr(predictor.runtime, "channels", 0) is None:
        raise InputError(f"--features: {predictor.file} gives no features; export it again")
    path = _state_path(target, options.part)
    if not path.exists():
        target.check_free()
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with BulkState(path) as state:
        _begin(state, predictor, options)
        before, started = state.counts().total(), time.perf_counter()
        if not state.finished:
            target.check_free()
            with track("predict", lambda: _share(state.total, options.part, predictor.max_batch)) as advance:
                if before:
                    advance(before, "resumed")
                predict_images(
                    workers or (lambda: Pipeline(predictor, options)), state, options, predictor.max_batch, advance
                )
            if options.copy_to is not None:
                copy_images(state, options.copy_to)
            state.remember({"finished": True})
        counts = state.counts()
        rate = (counts.total() - before) / (time.perf_counter() - started)
        if options.part.total == 1:
            if not target.exists():  # or it was written just before this process was killed
                _write(target, [state])
            state.remove()
            say(f"{output}: {_summary(counts)}" + (f"; {rate:,.1f} images/s" if rate else ""), always=True)
        else:
            say(f"{path}: {_summary(counts)}; merge all parts with `lipsformer predict --merge`", always=True)


def merge_parts(output: str, parts: Sequence[Path]) -> None:
    """Writes the rows of all parts to `output`, the same bytes as those of an undivided prediction.

    Raises:
        InputError: if a part is missing, given twice, unfinished, or of another prediction, or `output` exists.
    """
    target = Output.of(output)
    target.check_free()
    with contextlib.ExitStack() as stack:
        states: dict[str, BulkState] = {}
        for path in parts:
            if not path.is_file():
                raise InputError(f"{path}: no such part; give the files that --part wrote")
            state = stack.enter_context(BulkState(path))
            number = str(state.facts.get("part"))
            if not state.finished:
                raise InputError(f"{path}: not finished; run its command again first")
            if number in states:
                raise InputError(f"{path}: part {number}, as {states[number].path} is; give each part once")
            states[number] = state
        first = next(iter(states.values()))
        total = Part.parse(str(first.facts["part"])).total
        for state in states.values():
            _check_same(state, first.facts, f"of another prediction than {first.path}")
        if missing := [one for one in (f"{k}/{total}" for k in range(1, total + 1)) if one not in states]:
            raise InputError(f"{output}: part {missing[0]} is missing ({len(missing)} of {total} are); give all parts")
        counts = sum((state.counts() for state in states.values()), Counter[str]())
        _write(target, list(states.values()))
    say(f"{output}: {_summary(counts)}", always=True)


def _state_path(target: Output, part: Part) -> Path:
    ending = ".partial" if part.total == 1 else f".part-{part.number}-of-{part.total}"
    return target.path.with_name(target.path.name + ending)


def _begin(state: BulkState, predictor: Predictor, options: BulkOptions) -> None:
    """Records what a new state is for, or checks that an old one is for the same."""
    facts = {"identity": identity(predictor, options), "part": str(options.part), "model": options.model}
    if state.facts:
        _check_same(state, facts, "begun with other settings; run the same command, or remove this file")
    else:
        state.remember(facts)


def _check_same(state: BulkState, facts: Mapping[str, Any], problem: str) -> None:
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
        raise InputError(f"{state.path}: {problem} ({'; '.join(differing)})")


def _write(target: Output, states: Sequence[BulkState]) -> None:
    facts = states[0].facts
    sizes = [state.channels() for state in states]
    metadata = {name: fact for name, fact in facts["identity"].items() if name not in NOT_IN_METADATA}
    target.write(
        _merged(states),
        features=max((size for size in sizes if size), default=1) if facts["identity"]["features"] else None,
        metadata={"model": facts["model"], **metadata},
    )


def _merged(states: Sequence[BulkState]) -> Iterator[Row]:
    for _, row in heapq.merge(*(state.rows() for state in states), key=operator.itemgetter(0)):
        yield row


def _share(total: int | None, part: Part, block: int) -> int | None:
    """How many of `total` images are in a part."""
    if total is None:
        return None
    blocks, rest = divmod(total, block)
    full = len(range(part.number - 1, blocks, part.total))
    return full * block + (rest if rest and part.has(blocks) else 0)


def _summary(counts: Mapping[str, int]) -> str:
    """The numbers of images by status, "ok" first and then the most frequent."""
    order = sorted(counts.items(), key=lambda item: (item[0] != OK, -item[1], item[0]))
    listed = ", ".join(f"{count:,} {status}" for status, count in order)
    return f"{sum(counts.values()):,} images" + (f": {listed}" if listed else "")
