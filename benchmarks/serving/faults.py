"""Signals under load: the end of the server, the death of a worker, and bundles that are replaced."""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from bodies import expectations
from bundles import bundle
from load import Load, launch, result_of
from servers import Server, our_server
from summary import outcome_table

from lipsformer.inference.predictor import load_predictor

__all__ = ["add_arguments", "run", "table"]

SETTLE = 2.0  # seconds of load before the fault
PATIENCE = 60.0  # for the server to be as it should be after it


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--only", nargs="+", choices=["term", "kill", "hup"], default=["term", "kill", "hup"])


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    faults = {"term": _terminated, "kill": _killed, "hup": _replaced}
    path = bundle("cifar10", arguments.work)
    expected = expectations(load_predictor(path, threads=1))
    return {name: faults[name](arguments, path, expected) for name in arguments.only}


def _load(server: Server, arguments: argparse.Namespace, expected: dict[str, str], seconds: float, retry: bool) -> Load:
    return Load(
        url=server.url,
        mix={"raw": 1, "form": 1},
        expected=expected,
        seconds=seconds,
        clients=arguments.clients,
        retry=retry,
    )


def _terminated(arguments: argparse.Namespace, path: Path, expected: dict[str, str]) -> dict[str, Any]:
    """SIGTERM: what was accepted is answered; afterwards connections are refused."""
    with our_server(path, arguments.work / "server.log") as server:
        load = _load(server, arguments, expected, 2 * SETTLE + 1, True)
        generator = launch(load)
        time.sleep(SETTLE + 1)
        start = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(PATIENCE)
        took = time.monotonic() - start
        report = result_of(generator, load)
        return {"report": report, "seconds_to_end": round(took, 2), "exit_status": server.process.returncode}


def _killed(arguments: argparse.Namespace, path: Path, expected: dict[str, str]) -> dict[str, Any]:
    """SIGKILL of one worker of two: what it had is lost and counted, without a retry; a new one takes its place."""
    with our_server(path, arguments.work / "server.log", "--workers", "2") as server:
        _wait(lambda: _ready_workers(server) == 2)
        load = _load(server, arguments, expected, 20, False)
        generator = launch(load)
        time.sleep(SETTLE + 1)
        victim = _workers(server)[0]
        start = time.monotonic()
        victim.kill()
        _wait(lambda: _ready_workers(server) == 1)
        back = _wait(lambda: _ready_workers(server) == 2)
        took = time.monotonic() - start
        report = result_of(generator, load)
        return {"report": report, "seconds_to_come_back": round(took, 2) if back else None}


def _replaced(arguments: argparse.Namespace, path: Path, expected: dict[str, str]) -> dict[str, Any]:
    """SIGHUP after the bundle was replaced: by a good one, by a broken one, and by a folder moved into its place."""
    folder = arguments.work / "replaced"
    shutil.rmtree(folder, ignore_errors=True)
    first, second, broken, moved = (folder / name for name in ("first", "second", "broken", "moved"))
    for copy in (first, broken, moved):
        shutil.copytree(path, copy)
    shutil.copytree(bundle("unfolded", arguments.work), second)
    graph = next(broken.glob("*.onnx"))
    graph.write_bytes(graph.read_bytes()[:-1000])
    current = folder / "current"
    current.symlink_to(first.name)
    steps = {}
    with our_server(current, arguments.work / "server.log", "--workers", "2") as server:
        _wait(lambda: _ready_workers(server) == 2)
        load = _load(server, arguments, expected, 45, True)
        generator = launch(load)
        time.sleep(SETTLE + 1)
        for name, target, changes in (("good", second, True), ("broken", broken, False), ("moved", moved, True)):
            before = _served(server)
            _point(current, target)
            server.process.send_signal(signal.SIGHUP)
            wanted = _hash(target) if changes else before
            steps[name] = _watch(server, wanted, 10)
        report = result_of(generator, load)
    return {"report": report, "steps": steps}


def _watch(server: Server, wanted: str, seconds: float) -> dict[str, Any]:
    """After how many seconds every look at /info gave `wanted`, None if it never came or went again."""
    start, since = time.monotonic(), None
    while time.monotonic() - start < seconds:
        if _served(server) != wanted:
            since = None
        elif since is None:
            since = round(time.monotonic() - start, 2)
        time.sleep(0.05)
    return {"as_wanted_after_seconds": since}


def _point(link: Path, target: Path) -> None:
    new = link.with_name("new")
    new.symlink_to(target.name)
    new.replace(link)  # in one step, as a deployment does


def _served(server: Server) -> str:
    return str(json.loads(server.get("/info")[1])["bundle"]["file_sha256"])


def _hash(folder: Path) -> str:
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return str(next(file["sha256"] for file in manifest["files"] if file["kind"] == "onnx"))


def _workers(server: Server) -> list[psutil.Process]:
    """Its worker processes: those that circus started to serve, not their own children."""
    children = psutil.Process(server.process.pid).children()
    alive = [child for child in children if child.status() != psutil.STATUS_ZOMBIE]
    return [child for child in alive if "_bentoml_impl.worker.service" in child.cmdline()]


def _ready_workers(server: Server) -> int:
    log = server.log.read_text(errors="replace")
    return sum(f"worker {worker.pid} is ready" in log for worker in _workers(server))


def _wait(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.1)
    return False


def table(result: dict[str, Any]) -> str:
    facts = [
        f"- {name}: { {key: value for key, value in fault.items() if key != 'report'} }"
        for name, fault in result.items()
    ]
    return "\n".join([outcome_table({name: fault["report"] for name, fault in result.items()}), "", *facts])
