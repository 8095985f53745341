"""Bulk prediction: from sources to one file of rows, resumable, or to one part of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from lipsformer.images.decoding import check_system
from lipsformer.inference.predictor import Predictor
from lipsformer.system.atomic import draft_directory, write_errors
from lipsformer.system.console import say, track
from lipsformer.system.errors import InputError

from . import stores
from .copies import copy_images
from .engine import Workers, predict_images
from .output import Output
from .parts import check_same, summary, write_rows
from .pipeline import Pipeline
from .settings import BulkOptions, Part, identity
from .state import BulkState

__all__ = ["predict_to_file"]

MERGE = "merge all parts with `lipsformer predict --merge`"


def predict_to_file(
    predictor: Predictor, options: BulkOptions, output: str, workers: Callable[[], Workers] | None = None
) -> None:
    """Predicts all images of the sources and writes their rows to `output`.

    `workers`, made in the event loop, compute the rows; by default the pipeline of this machine.

    Until it is complete, the state lies next to it or in the folder `options.state`: OUTPUT.partial. That of a part is
    OUTPUT.part-K-of-N, which stays; in an object store, it is written next to `output` when it is finished. A call with
    the same arguments resumes, and gives the same bytes as one that was never stopped.

    Raises:
        InputError: if `output` exists, was begun with other settings, or cannot be written; if this is not Linux.
        StoppedError: after SIGINT or SIGTERM; the state is kept.
        TooManyFailuresError: if more than `max_failures` images are refused; the state is kept.
    """
    check_system()
    target = Output.of(output, options.state)
    if options.features and getattr(predictor.runtime, "channels", 0) is None:
        raise InputError(f"--features: {predictor.file} gives no features; export it again")
    whole = options.part.total == 1
    name = target.name if whole else target.part(options.part)
    path = Path(f"{target.state}.partial") if whole else target.state.with_name(Path(name).name)
    if not path.exists():
        target.check_free()
        if not whole and target.remote and stores.exists(name):
            _check_part(name, path, predictor, options)
            return
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with BulkState(path) as state:
        _begin(state, predictor, options)
        rate = _compute(state, predictor, options, target, workers or (lambda: Pipeline(predictor, options)))
        counts = summary(state.counts())
        if whole:
            if not target.exists():  # or it was written just before this process was killed
                write_rows(target, state)
            state.remove()
            say(f"{name}: {counts}" + (f"; {rate:,.1f} images/s" if rate else ""), always=True)
            return
        if target.remote:
            state.flush()
            stores.upload(path, name)
            state.remove()
        say(f"{name if target.remote else path}: {counts}; {MERGE}", always=True)


def _compute(
    state: BulkState, predictor: Predictor, options: BulkOptions, target: Output, workers: Callable[[], Workers]
) -> float:
    """Computes the rows that the state lacks; returns the rate in images/s."""
    before, started = state.counts().total(), time.perf_counter()
    if not state.finished:
        target.check_free()
        with track("predict", lambda: _share(state.total, options.part, predictor.max_batch)) as advance:
            if before:
                advance(before, "resumed")
            predict_images(workers, state, options, predictor.max_batch, advance)
        if options.copy_to is not None:
            copy_images(state, options.copy_to)
        state.remember({"finished": True})
    return (state.counts().total() - before) / (time.perf_counter() - started)


def _check_part(name: str, path: Path, predictor: Predictor, options: BulkOptions) -> None:
    """Checks that a finished part in an object store is the one that would be computed.

    Raises:
        InputError: if it is another one.
    """
    with draft_directory(path) as draft:
        stores.download(name, draft / "part")
        with BulkState(draft / "part", name) as state:
            _begin(state, predictor, options)
            say(f"{name}: {summary(state.counts())}; {MERGE}", always=True)


def _begin(state: BulkState, predictor: Predictor, options: BulkOptions) -> None:
    """Records what a new state is for, or checks that an old one is for the same."""
    facts = {"identity": identity(predictor, options), "part": str(options.part), "model": options.model}
    if state.facts:
        check_same(state, facts, "begun with other settings; run the same command, or remove this file")
    else:
        state.remember(facts)


def _share(total: int | None, part: Part, block: int) -> int | None:
    """How many of `total` images are in a part."""
    if total is None:
        return None
    blocks, rest = divmod(total, block)
    full = len(range(part.number - 1, blocks, part.total))
    return full * block + (rest if rest and part.has(blocks) else 0)
