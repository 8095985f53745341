"""Everything that needs a GPU, as one page: tests, parity and speed on CUDA, TensorRT engines, training steps, NCCL.

    python benchmarks/gpu/measure.py --output DIR

It needs no network, and ends within 9 minutes. Each part of `parts.py` runs in a separate process with a time limit.
One that fails, hangs or lacks a library does not stop the next. After each part, DIR/README.md (the page) and
DIR/results.json are written again. `--dry-run` runs every part on the CPU with a tiny model. This file uses only the
standard library, so that it can report whatever else is missing.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
TOTAL = 530  # seconds for all parts
LEAST = 5  # seconds of the total that a part is still started with
TAIL = 25  # lines of its output that a failed part shows
PASSED, FAILED, SKIPPED, TIMED_OUT = "passed", "failed", "skipped", "timed out"


class Part(NamedTuple):
    """A part by its name in `parts.py`, its heading, and the seconds after which it is killed."""

    name: str
    title: str
    limit: float


PARTS = (
    Part("environment", "Environment", 45),
    Part("tests", "Tests that need a GPU", 120),
    Part("training", "Training step", 60),
    Part("compiled-training", "Training step, torch.compile", 150),
    Part("export", "Graphs", 100),
    Part("cuda", "ONNX Runtime on CUDA", 100),
    Part("tensorrt", "TensorRT", 180),
    Part("tensorrt-rtx", "TensorRT for RTX", 100),
    Part("processes", "Two training processes", 60),
    Part("pytorch", "PyTorch", 120),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """What became of a part. `found` is what it wrote, `output` the end of what it printed if it did not pass."""

    name: str
    title: str
    status: str
    seconds: float
    limit: float
    reason: str | None
    found: dict[str, Any]
    output: tuple[str, ...]


def run(part: Part, folder: Path, limit: float, *, dry_run: bool) -> Result:
    """Run a part for at most `limit` seconds, in a process group that does not outlive it."""
    log, written = folder / f"{part.name}.log", folder / f"{part.name}.json"
    command = [sys.executable, str(HERE / "parts.py"), part.name, str(folder), *(["--dry-run"] if dry_run else [])]
    path = os.pathsep.join(filter(None, (str(HERE.parents[1]), os.environ.get("PYTHONPATH"))))
    started, status = time.monotonic(), None
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = process.wait(limit)
        finally:
            kill(process)
    found = json.loads(written.read_text(encoding="utf-8")) if written.is_file() else {}
    outcome, reason = judge(status, found, limit)
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return Result(
        name=part.name,
        title=part.title,
        status=outcome,
        seconds=time.monotonic() - started,
        limit=limit,
        reason=reason,
        found=found,
        output=tuple(lines[-TAIL:]) if outcome in (FAILED, TIMED_OUT) else (),
    )


def judge(status: int | None, found: dict[str, Any], limit: float) -> tuple[str, str | None]:
    """What became of a part with this exit status, None if it was stopped, and why."""
    if status is None:
        return TIMED_OUT, f"stopped after {limit:.0f} s"
    if status != 0:
        return FAILED, f"killed by signal {-status}" if status < 0 else f"exit status {status}"
    if found.get("skipped"):
        return SKIPPED, found["skipped"]
    if found.get("failures"):
        return FAILED, "; ".join(found["failures"])
    return PASSED, None


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process with all that it started, also in process groups of their own."""
    for pid in descendants(process.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def descendants(pid: int) -> list[int]:
    """The processes that a process started, and so on."""
    children: list[int] = []
    for threads in Path(f"/proc/{pid}/task").glob("*/children"):  # nothing off Linux
        with contextlib.suppress(OSError):  # it has ended
            children += map(int, threads.read_text(encoding="ascii").split())
    return [found for child in children for found in (*descendants(child), child)]


def cell(value: object) -> str:
    """A value of a table as text."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return " ".join(str(value).split()).replace("|", "\\|")


def table(columns: list[str], rows: list[list[object]]) -> str:
    """A table in Markdown; columns of numbers are flush right."""
    numbers = [
        any(isinstance(row[i], int | float) for row in rows) and not any(isinstance(row[i], str) for row in rows)
        for i in range(len(columns))
    ]
    lines = [columns, ["---:" if number else "---" for number in numbers]]
    lines += [[cell(value) for value in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def page(results: list[Result], seconds: float, *, dry_run: bool) -> str:
    """The page in Markdown."""
    passed, skipped = (sum(result.status == status for result in results) for status in (PASSED, SKIPPED))
    lines = ["# On a GPU", "", "    python benchmarks/gpu/measure.py --output DIR", ""]
    if dry_run:
        lines += ["On the CPU with a tiny model (`--dry-run`), so none of these numbers means anything.", ""]
    lines += [
        f"{passed} of {len(results)} parts passed in {seconds:.0f} s, {skipped} were skipped.",
        "",
        table(
            ["part", "result", "seconds", "why"],
            [[result.title, result.status, result.seconds, result.reason or ""] for result in results],
        ),
    ]
    for result in results:
        if result.status == SKIPPED:
            continue
        lines += ["", f"## {result.title}", "", f"{result.status.capitalize()}. {cell(result.reason or '')}".strip()]
        for found in result.found.get("tables", ()):
            lines += ["", found["title"], "", table(found["columns"], found["rows"])]
        for note in result.found.get("notes", ()):
            lines += ["", cell(note)]
        if result.output:
            lines += ["", "The end of its output:", "", *(f"    {line}".rstrip() for line in result.output)]
    return "\n".join(lines) + "\n"


def write(folder: Path, results: list[Result], seconds: float, *, dry_run: bool) -> None:
    facts = {"dry_run": dry_run, "seconds": seconds, "parts": [dataclasses.asdict(result) for result in results]}
    (folder / "results.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(page(results, seconds, dry_run=dry_run), encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for README.md and results.json")
    parser.add_argument("--dry-run", action="store_true", help="every part on the CPU, with a tiny model")
    parser.add_argument("--part", action="append", choices=[part.name for part in PARTS], help="only this; repeatable")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    started, results = time.monotonic(), list[Result]()
    with tempfile.TemporaryDirectory(prefix="lipsformer-gpu-") as name:
        for part in PARTS:
            if arguments.part and part.name not in arguments.part:
                continue
            limit = min(part.limit, TOTAL - (time.monotonic() - started))
            if limit < LEAST:
                reason = f"nothing is left of the {TOTAL} s for all parts; run it alone: --part {part.name}"
                result = Result(
                    name=part.name,
                    title=part.title,
                    status=SKIPPED,
                    seconds=0.0,
                    limit=0.0,
                    reason=reason,
                    found={},
                    output=(),
                )
            else:
                result = run(part, Path(name), limit, dry_run=arguments.dry_run)
            results.append(result)
            print(f"{part.title}: {result.status}, {result.seconds:.0f} s {result.reason or ''}".rstrip(), flush=True)
            write(arguments.output, results, time.monotonic() - started, dry_run=arguments.dry_run)
    return int(any(result.status in (FAILED, TIMED_OUT) for result in results))


if __name__ == "__main__":
    sys.exit(main())
