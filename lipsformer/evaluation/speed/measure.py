"""Speed measurement: one process per model, measured in turn."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from lipsformer.model.flops import count_multiply_adds
from lipsformer.system.console import track
from lipsformer.system.errors import InputError, LipsFormerError
from lipsformer.system.hardware import check_device, cores
from lipsformer.system.subprocesses import ProcessDiedError, Subprocess

from .candidates import Candidate, Refusal, find_candidates
from .report import BenchmarkReport, Measurement, Subject, describe_machine
from .worker import OPERATIONS, MatrixProduct, MeasuredModel, ModelFacts

__all__ = ["BATCHES", "measure_speed", "parse_batches"]

BATCHES = (1, 8)
ON_CPU = ("CPUExecutionProvider", "torch-cpu")
Turn = tuple[int | None, int]  # index of the model, None for the matrix product; batch size


@dataclasses.dataclass(kw_only=True)
class Loaded:
    """A candidate loaded in its process, and the seconds of its calls by batch size."""

    candidate: Candidate
    process: Subprocess
    facts: ModelFacts
    rounds: dict[int, list[list[float]]]  # by batch size, the calls of each round


def parse_batches(text: str) -> tuple[int, ...]:
    """Read comma-separated batch sizes, such as "1,8".

    Raises:
        InputError: if there are none, one is not a whole number from 1 on, or one is given twice.
    """
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdigit() and len(word) < 6 and int(word) > 0 for word in words):
        raise InputError(f"--batch {text}: give whole numbers from 1 on, separated by commas")
    batches = tuple(int(word) for word in words)
    if len(set(batches)) < len(batches):
        raise InputError(f"--batch {text}: a batch size is given twice")
    return batches


def measure_speed(
    models: Sequence[tuple[str, Path]],
    *,
    batches: Sequence[int] = BATCHES,
    rounds: int = 5,
    seconds: float = 1.0,
    threads: int | None = None,
    device: str = "auto",
) -> BenchmarkReport:
    """Measure models side by side.

    Each runs in a separate process. Each round measures every model at every batch size for `seconds`, in a new random
    order, while the others wait. So other load on the machine affects all models alike. A matrix product on the CPU is
    measured too, as the peak speed of its cores.

    Args:
        models: labels with their paths: checkpoints, .onnx files, engines, or bundles, of which every file that can run
            here is measured.
        batches: batch sizes.
        rounds: number of rounds.
        seconds: for each model and batch size in a round, and three calls at least.
        threads: CPU threads; by default all cores.
        device: "auto", "cpu" or "cuda".

    Raises:
        InputError: if a model cannot be used, or was exported for smaller batches.
        GateError: if the hash of a bundle's file differs from its manifest.
        LipsFormerError: if a model's process fails.
    """
    if rounds < 1:
        raise InputError(f"--rounds {rounds}: it must be at least 1")
    if not 0 <= seconds <= 3600:  # NaN fails too
        raise InputError(f"--seconds {seconds:g}: it must be from 0 to 3600")
    if threads is not None and threads < 1:
        raise InputError(f"--threads {threads}: it must be at least 1")
    check_device(device)
    found = find_candidates(models)
    for candidate in found:
        if isinstance(candidate, Candidate):
            _check_batches(candidate, batches)
    threads = threads or cores()
    with contextlib.ExitStack() as stack:
        loaded, refused = _load(found, stack, batches=list(batches), threads=threads, device=device)
        product = stack.enter_context(_process("the matrix product", threads))
        product.create(MatrixProduct, threads=threads)
        products = _take_turns(loaded, product, batches, rounds, seconds)
    peak = OPERATIONS / min(products)
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
    """Load each candidate in a process, one after the other; a bundle's file that does not load is left out."""
    import torch

    loaded: list[Loaded] = []
    refused = [item for item in found if isinstance(item, Refusal)]
    cuda = device != "cpu" and torch.cuda.is_available()
    candidates = [item for item in found if isinstance(item, Candidate)]
    with track("loading", len(candidates)) as advance:
        for candidate in candidates:
            process = stack.enter_context(_process(candidate.label, threads))
            model, precision = candidate.loads
            try:
                with _explained_death(candidate.label):
                    process.create(
                        MeasuredModel,
                        model=model.absolute(),
                        precision=precision,
                        device=device,
                        threads=threads,
                        batches=batches,
                        cuda=cuda,
                    )
                    facts = process.call("facts")
            except LipsFormerError as error:
                if not candidate.optional:
                    raise
                refused.append(Refusal(label=candidate.label, reason=str(error)))
            else:
                rounds: dict[int, list[list[float]]] = {batch: [] for batch in batches}
                loaded.append(Loaded(candidate=candidate, process=process, facts=facts, rounds=rounds))
            advance(1, candidate.label)
    if not loaded:
        raise InputError(f"nothing can run here: {'; '.join(f'{item.label}: {item.reason}' for item in refused)}")
    return loaded, refused


def _process(label: str, threads: int) -> Subprocess:
    return Subprocess(label, {"OMP_NUM_THREADS": str(threads)})


@contextlib.contextmanager
def _explained_death(label: str) -> Iterator[None]:
    try:
        yield
    except ProcessDiedError as death:
        hint = "possibly out of memory; " if death.killed else ""
        raise LipsFormerError(
            f"{label}: its process ended ({death}); {hint}try a smaller --batch, or omit this model"
        ) from None


def _take_turns(
    loaded: Sequence[Loaded], product: Subprocess, batches: Sequence[int], rounds: int, seconds: float
) -> list[float]:
    """Measure everything once in each round; return the seconds of the matrix products."""
    turns: list[Turn] = [(index, batch) for index in range(len(loaded)) for batch in batches]
    turns.append((None, 0))
    products: list[float] = []
    order = np.random.default_rng(0)
    with track("benchmark", rounds * len(turns)) as advance:
        for round_number in range(rounds):
            for turn in order.permutation(len(turns)):
                index, batch = turns[turn]
                if index is None:
                    with _explained_death("the matrix product"):
                        products += product.call("turn")
                else:
                    model = loaded[index]
                    with _explained_death(model.candidate.label):
                        model.rounds[batch].append(model.process.call("turn", batch=batch, seconds=seconds))
                advance(1, f"round {round_number + 1} of {rounds}")
    return products


def _subject(model: Loaded, first: Loaded) -> Subject:
    relative, agreement = _parity(model.facts, first.facts)
    candidate = model.candidate
    return Subject(
        label=candidate.label,
        provider=model.facts.provider,
        precision=candidate.precision,
        file_bytes=candidate.path.stat().st_size,
        multiply_adds=count_multiply_adds(candidate.config),
        relative_l2=relative,
        top1_agreement=agreement,
        photos=len(model.facts.logits),
        parity=candidate.parity,
    )


def _parity(facts: ModelFacts, first: ModelFacts) -> tuple[float | None, float | None]:
    """The worst photo's relative L2 error against the first model, and the share of equal top-1.

    Both are None for different preprocessing or numbers of classes.
    """
    found, wanted = facts.logits.astype(np.float64), first.logits.astype(np.float64)
    if found.shape != wanted.shape or facts.preprocessing != first.preprocessing:
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
        memory_bytes=model.facts.memory[place],
        gpu_memory_bytes=model.facts.gpu_memory[place],
        sgemm_share=achieved / peak if subject.precision == "fp32" and subject.provider in ON_CPU else None,
    )
