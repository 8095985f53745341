"""The measurement: a process for each model, which take turns."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipsformer.model.flops import count_multiply_adds
from lipsformer.system.console import track
from lipsformer.system.errors import InputError, LipsFormerError
from lipsformer.system.hardware import check_device, cores

from .candidates import Candidate, Refusal, find_candidates
from .process import Worker
from .report import BenchmarkReport, Measurement, Subject, describe_machine

__all__ = ["BATCHES", "measure_speed", "parse_batches"]

BATCHES = (1, 8)
ON_CPU = ("CPUExecutionProvider", "torch-cpu")
Turn = tuple[int | None, int]  # which model, None for the matrix product; batch size


@dataclasses.dataclass(kw_only=True)
class Loaded:
    """A candidate at work in its process: what it said when it was loaded, and the seconds of its calls by batch."""

    candidate: Candidate
    worker: Worker
    facts: dict[str, Any]
    rounds: dict[int, list[list[float]]]  # by batch size, the calls of each round


def parse_batches(text: str) -> tuple[int, ...]:
    """The batch sizes that `text` names, such as "1,8".

    Raises:
        InputError: if it names none, one that is not a whole number from 1 on, or one twice.
    """
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdigit() and len(word) < 6 and int(word) > 0 for word in words):
        raise InputError(f"--batch {text}: whole numbers from 1 on are needed, with commas between them")
    batches = tuple(int(word) for word in words)
    if len(set(batches)) < len(batches):
        raise InputError(f"--batch {text}: names a batch size twice")
    return batches


def measure_speed(
    models: Sequence[str | Path],
    *,
    batches: Sequence[int] = BATCHES,
    rounds: int = 5,
    seconds: float = 1.0,
    threads: int | None = None,
    device: str = "auto",
) -> BenchmarkReport:
    """Measures models beside each other.

    Each runs in a process of its own. In each of `rounds` rounds every model has a turn of `seconds` at every batch
    size, in an order that is shuffled anew, while the others wait: what else the machine does falls on all alike. On a
    CPU a matrix product has turns too, to know what the cores can do.

    Args:
        models: checkpoints, .onnx files, engines, or bundles, which stand for all in them that can run here.
        batches: batch sizes.
        rounds: how many rounds.
        seconds: how long a turn lasts; it makes three calls at least.
        threads: CPU threads; by default all cores.
        device: "auto", "cpu" or "cuda".

    Raises:
        InputError: if a model cannot be used, or was not exported for a batch as large.
        GateError: if a file of a bundle does not have the hash that its manifest promises.
        LipsFormerError: if a model's process fails.
    """
    if rounds < 1:
        raise InputError(f"--rounds {rounds}: at least 1 is needed")
    if not 0 <= seconds <= 3600:  # NaN is refused too
        raise InputError(f"--seconds {seconds:g}: 0 to 3600 are needed")
    if threads is not None and threads < 1:
        raise InputError(f"--threads {threads}: at least 1 is needed")
    check_device(device)
    found = find_candidates(models)
    for candidate in found:
        if isinstance(candidate, Candidate):
            _check_batches(candidate, batches)
    threads = threads or cores()
    with contextlib.ExitStack() as stack:
        loaded, refused = _load(found, stack, batches=list(batches), threads=threads, device=device)
        product = stack.enter_context(Worker("the matrix product", threads))
        operations = product.ask(threads=threads)["operations"]
        products = _take_turns(loaded, product, batches, rounds, seconds)
    peak = operations / min(products)
    subjects = [_subject(one, loaded[0]) for one in loaded]
    return BenchmarkReport(
        machine=describe_machine(threads),
        device=device,
        rounds=rounds,
        seconds=seconds,
        sgemm_gflops=peak / 1e9,
        subjects=tuple(subjects),
        measurements=tuple(
            _measurement(loaded, index, batch, subjects[index], peak)
            for batch in sorted(batches)
            for index in range(len(loaded))
        ),
        refused=tuple(refused),
    )


def _check_batches(candidate: Candidate, batches: Sequence[int]) -> None:
    if candidate.max_batch is not None and max(batches) > candidate.max_batch:
        raise InputError(
            f"--batch {max(batches)}: {candidate.label} was exported for batches up to {candidate.max_batch}; "
            "lower it, or export again with a larger --max-batch"
        )


def _load(
    found: Sequence[Candidate | Refusal],
    stack: contextlib.ExitStack,
    *,
    batches: list[int],
    threads: int,
    device: str,
) -> tuple[list[Loaded], list[Refusal]]:
    """Starts a process for each candidate, one after the other; a part of a bundle that does not start is left out."""
    import torch

    loaded: list[Loaded] = []
    refused = [item for item in found if isinstance(item, Refusal)]
    request: dict[str, Any] = {"device": device, "threads": threads, "batches": batches}
    request["cuda"] = device != "cpu" and torch.cuda.is_available()
    candidates = [item for item in found if isinstance(item, Candidate)]
    with track("loading", len(candidates)) as advance:
        for candidate in candidates:
            worker = stack.enter_context(Worker(candidate.label, threads))
            try:
                facts = worker.ask(model=str(candidate.path.absolute()), **request)
            except LipsFormerError as error:
                if not candidate.optional:
                    raise
                refused.append(Refusal(label=candidate.label, reason=str(error)))
            else:
                rounds: dict[int, list[list[float]]] = {batch: [] for batch in batches}
                loaded.append(Loaded(candidate=candidate, worker=worker, facts=facts, rounds=rounds))
            advance(1, candidate.label)
    if not loaded:
        raise InputError(f"nothing that can run here: {'; '.join(f'{item.label}: {item.reason}' for item in refused)}")
    return loaded, refused


def _take_turns(
    loaded: Sequence[Loaded], product: Worker, batches: Sequence[int], rounds: int, seconds: float
) -> list[float]:
    """Measures everything once in each round; gives the seconds of the matrix products."""
    turns: list[Turn] = [(index, batch) for index in range(len(loaded)) for batch in batches]
    turns.append((None, 0))
    products: list[float] = []
    order = np.random.default_rng(0)
    with track("benchmark", rounds * len(turns)) as advance:
        for round_number in range(rounds):
            for turn in order.permutation(len(turns)):
                index, batch = turns[turn]
                if index is None:
                    products += product.ask()["times"]
                else:
                    model = loaded[index]
                    model.rounds[batch].append(model.worker.ask(batch=batch, seconds=seconds)["times"])
                advance(1, f"round {round_number + 1} of {rounds}")
    return products


def _subject(model: Loaded, first: Loaded) -> Subject:
    relative, agreement = _parity(model.facts, first.facts)
    candidate = model.candidate
    return Subject(
        label=candidate.label,
        provider=model.facts["provider"],
        precision=candidate.precision,
        file_bytes=candidate.path.stat().st_size,
        multiply_adds=count_multiply_adds(candidate.config),
        relative_l2=relative,
        top1_agreement=agreement,
        photos=len(model.facts["logits"]),
        proof=candidate.proof,
    )


def _parity(facts: dict[str, Any], first: dict[str, Any]) -> tuple[float | None, float | None]:
    """The worst photo's relative L2 error against the first model, and the share of equal top-1; None if not alike."""
    found: NDArray[np.float64]
    found, wanted = (np.asarray(one["logits"], np.float64) for one in (facts, first))
    if found.shape != wanted.shape or facts["preprocessing"] != first["preprocessing"]:
        return None, None
    norms = np.maximum(np.linalg.norm(wanted, axis=1), np.finfo(np.float32).tiny)
    relative = float((np.linalg.norm(found - wanted, axis=1) / norms).max())
    agreement = float((found.argmax(axis=1) == wanted.argmax(axis=1)).mean())
    return (relative if np.isfinite(relative) else None), agreement


def _measurement(loaded: Sequence[Loaded], index: int, batch: int, subject: Subject, peak: float) -> Measurement:
    model, first = loaded[index], loaded[0]
    calls = np.concatenate(model.rounds[batch])
    median = float(np.median(calls))
    medians, firsts = ([float(np.median(times)) for times in one.rounds[batch]] for one in (model, first))
    place = sorted(model.rounds).index(batch)
    achieved = 2 * subject.multiply_adds * batch / median
    return Measurement(
        subject=index,
        batch=batch,
        calls=len(calls),
        rounds_ms=tuple(value * 1e3 for value in medians),
        p50_ms=median * 1e3,
        p99_ms=float(np.percentile(calls, 99, method="higher")) * 1e3,
        images_per_second=batch / median,
        speedup=float(np.median([theirs / ours for ours, theirs in zip(medians, firsts, strict=True)])),
        memory_bytes=model.facts["memory"][place],
        gpu_memory_bytes=model.facts["gpu_memory"][place],
        sgemm_share=achieved / peak if subject.precision == "fp32" and subject.provider in ON_CPU else None,
    )
