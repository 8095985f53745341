"""What a server's processes use: memory counted once however many share it, files, and processor time."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
from servers import Server

__all__ = ["Usage", "plot", "processor_seconds", "sampling", "spent", "usage"]

MIB = 1024 * 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class Usage:
    """One look at a tree of processes: MiB of PSS and RSS, open files, processes, seconds since the start."""

    seconds: float
    pss: float
    rss: float
    files: int
    processes: int


def usage(server: Server, start: float) -> Usage:
    """What all processes of `server` use now; one that ends meanwhile counts for nothing."""
    pss = rss = files = count = 0
    for process in server.tree():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess, FileNotFoundError, ProcessLookupError):
            memory = process.memory_full_info()
            files += process.num_fds()
            pss, rss, count = pss + memory.pss, rss + memory.rss, count + 1
    seconds = time.perf_counter() - start
    return Usage(seconds=round(seconds, 1), pss=pss / MIB, rss=rss / MIB, files=files, processes=count)


def processor_seconds(server: Server) -> dict[int, float]:
    """Seconds of processor time that each process of `server` has used."""
    used = {}
    for process in server.tree():
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            used[process.pid] = times.user + times.system
    return used


def spent(before: Mapping[int, float], after: Mapping[int, float], photos: int) -> list[float]:
    """Milliseconds of processor time a photo in between, by process, the most first; below 1 % of the whole is idle."""
    used = [seconds - before.get(pid, 0) for pid, seconds in after.items()]
    least = sum(used) / 100
    return sorted((round(seconds * 1000 / max(photos, 1), 3) for seconds in used if seconds > least), reverse=True)


@contextlib.contextmanager
def sampling(server: Server, every: float) -> Iterator[list[Usage]]:
    """Looks at `server` every so many seconds; the list grows meanwhile."""
    start, stop = time.perf_counter(), threading.Event()
    samples = [usage(server, start)]

    def sample() -> None:
        while not stop.wait(every):
            samples.append(usage(server, start))

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        stop.set()
        thread.join(10)
        samples.append(usage(server, start))


def plot(samples: Sequence[Usage], path: Path, title: str) -> None:
    """Memory and open files over time, as a PNG."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 3.5), layout="constrained")
    minutes = [sample.seconds / 60 for sample in samples]
    lines: list[Any] = axes.plot(minutes, [sample.pss for sample in samples], label="PSS, MiB")
    axes.set(xlabel="minutes", ylabel="MiB", title=title)
    axes.set_ylim(bottom=0)
    right = axes.twinx()
    lines += right.plot(minutes, [sample.files for sample in samples], color="tab:orange", label="open files")
    right.set(ylabel="open files")
    right.set_ylim(bottom=0)
    axes.legend(handles=lines, loc="lower right")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
