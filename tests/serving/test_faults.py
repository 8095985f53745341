"""Faults under load: signals, killed workers, new bundles, and a runtime that fails."""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import psutil
import pytest
from PIL import Image

from lipsformer import load_predictor
from lipsformer.bundle.acceptance import ACCEPTANCE_NAME
from lipsformer.bundle.manifest import BundleFile, read_manifest
from lipsformer.images.samples import SAMPLES
from lipsformer.serving.bento.signals import on_hangup, remember_hangups
from lipsformer.serving.observability import open_metrics
from lipsformer.serving.pipeline.loaded_bundle import LoadedBundle
from lipsformer.serving.settings import Settings
from lipsformer.system.errors import GateError
from tests.serving.load_clients import TLS, asking
from tests.support.bf16 import add_bf16, needs_bf16
from tests.support.http.server import app_running, serving
from tests.support.trained import Trained

PHOTO = SAMPLES / "Kaiser.jpg"
BODY = PHOTO.read_bytes()


def workers(master: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The worker processes of a server: not the decoders, nor BentoML's own."""
    return [child for child in psutil.Process(master.pid).children() if "worker.service" in command_of(child)]


def command_of(process: psutil.Process) -> str:
    """Its command line, empty if it has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def gone(process: psutil.Process) -> bool:
    """Whether it has ended, even if nobody has reaped it."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.Error:
        return True


def metric(url: str, name: str) -> float:
    """The sum of a metric's series, or one of them."""
    lines = httpx.get(f"{url}/metrics", verify=TLS).text.splitlines()
    return sum(float(value) for series, _, value in (line.rpartition(" ") for line in lines) if series.startswith(name))


def all_ready(log: Path, count: int) -> bool:
    """Whether so many workers are ready; the server answers as soon as one is."""
    return log.read_text().count(" is ready") >= count


def until(condition: Callable[[], bool], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_sigterm_answers_what_was_accepted(trained: Trained, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with serving(trained.bundle, log, LIPSFORMER_LOG="json") as (url, process), asking(url, BODY, 8) as load:
        load.wait_for(50)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    # Each request that the server has read has a line in its log: all of them, and no more, were answered. What the
    # kernel still queued, or came on a connection that was idle when the server closed it, was not accepted.
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    logged = collections.Counter(line["status"] for line in lines if line.get("route") == "/classify")
    assert logged == load.statuses
    assert set(logged) <= {200, 503}
    assert load.refused > 0  # later clients were refused at once
    assert "Traceback" not in log.read_text()


@pytest.mark.slow
def test_a_killed_worker_comes_back_and_its_losses_are_counted(trained: Trained, tmp_path: Path) -> None:
    with serving(trained.bundle, tmp_path / "log", LIPSFORMER_WORKERS="2") as (url, process):
        until(lambda: all_ready(tmp_path / "log", 2))
        before = workers(process)
        assert len(before) == 2
        decoders = before[0].children()
        assert decoders
        with asking(url, BODY, 8) as load:
            load.wait_for(50)
            before[0].send_signal(signal.SIGKILL)
            load.wait_for(100)  # the other one continues
            until(lambda: metric(url, "lipsformer_worker_starts_total") == 3)
            load.wait_for(50)
        assert set(load.statuses) <= {200, 503}
        assert len(load.lost) <= 8  # at most one request of each client
        lost = metric(url, "lipsformer_accepted_total") - metric(url, "lipsformer_answered_total")
        assert 0 <= lost <= len(load.lost)
        assert metric(url, "lipsformer_pending") == 0  # the dead worker's are not counted for ever
        assert all(gone(decoder) for decoder in decoders)


@pytest.mark.slow
def test_nothing_is_left_when_the_master_is_killed(trained: Trained, tmp_path: Path) -> None:
    with serving(trained.bundle, tmp_path / "log") as (_, process):
        family = psutil.Process(process.pid).children(recursive=True)
        assert len(family) >= 2
        process.kill()
        process.wait(5)
        until(lambda: all(gone(child) for child in family))


def test_a_sighup_while_a_worker_loads_is_not_lost() -> None:
    """It may have looked at the bundle just before that was replaced."""
    reloads = []

    async def reload() -> None:
        reloads.append("reloaded")

    async def worker() -> None:
        on_hangup(reload)
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    before = signal.getsignal(signal.SIGHUP)
    try:
        for hangups in (0, 1, 3):
            reloads.clear()
            remember_hangups()
            for _ in range(hangups):
                os.kill(os.getpid(), signal.SIGHUP)
            asyncio.run(worker())
            assert len(reloads) == min(hangups, 1)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.slow
def test_sighup_swaps_to_a_good_bundle_and_rejects_a_broken_one(trained: Trained, tmp_path: Path) -> None:
    other = renamed(trained.bundle, tmp_path / "other")
    broken = shutil.copytree(trained.bundle, tmp_path / "broken")
    graph = broken / "ort-fp32.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"x")
    link = tmp_path / "current"
    link.symlink_to(trained.bundle)
    best = load_predictor(trained.bundle).predict([PHOTO], 1)[0][0].label

    with serving(link, tmp_path / "log", LIPSFORMER_WORKERS="2") as (url, process), asking(url, BODY, 8) as load:
        pids = {worker.pid for worker in workers(process)}
        load.wait_for(30)
        until(
            lambda: (tmp_path / "log").read_text().count(" is ready") == 2
        )  # or a worker would start with the broken one
        point(link, broken)
        process.send_signal(signal.SIGHUP)
        until(lambda: metric(url, 'lipsformer_reloads_total{outcome="kept"}') == 2)
        load.wait_for(30)
        assert set(load.labels) == {best}

        point(link, other)
        process.send_signal(signal.SIGHUP)
        until(lambda: metric(url, 'lipsformer_reloads_total{outcome="swapped"}') == 2)
        load.labels.clear()
        load.wait_for(30)
        assert set(load.labels) <= {best, f"new {best}"}  # requests in flight
        load.labels.clear()
        load.wait_for(30)
        assert set(load.labels) == {f"new {best}"}
        assert {worker.pid for worker in workers(process)} == pids
        assert httpx.get(f"{url}/info").json()["classes"][0].startswith("new ")
    assert set(load.statuses) <= {200, 503}
    assert load.lost == []
    log = (tmp_path / "log").read_text()
    assert "the new bundle is not used, the old one stays" in log
    assert "SHA-256" in log


def test_a_watched_bundle_is_swapped_without_a_signal(trained: Trained, tmp_path: Path) -> None:
    other = renamed(trained.bundle, tmp_path / "other")
    link = tmp_path / "current"
    link.symlink_to(trained.bundle)
    with app_running(link, WATCH="1") as app:
        assert not httpx.get(f"{app.url}/info", verify=TLS).json()["classes"][0].startswith("new ")
        point(link, other)
        until(lambda: httpx.get(f"{app.url}/info", verify=TLS).json()["classes"][0].startswith("new "))


def test_a_rule_comes_with_a_new_bundle_and_a_damaged_one_does_not(
    trained: Trained, choosy: Trained, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damaged = shutil.copytree(choosy.bundle, tmp_path / "damaged")
    rule = damaged / ACCEPTANCE_NAME
    content = bytearray(rule.read_bytes())
    content[-1] ^= 1
    rule.write_bytes(content)
    line = f"{rule}: its SHA-256 is not the manifest's: damaged or changed; export the bundle again"
    with pytest.raises(GateError) as refused:
        LoadedBundle.load(Settings.from_environment({"LIPSFORMER_BUNDLE": str(damaged)}), lambda _: None)
    assert str(refused.value) == line

    link = tmp_path / "current"
    link.symlink_to(trained.bundle)

    def answer() -> dict[str, Any]:
        headers = {"Content-Type": "image/jpeg"}
        return httpx.post(f"{app.url}/classify", content=BODY, headers=headers, verify=TLS).json()

    with app_running(link, WATCH="1") as app:
        assert "accepted" not in answer()
        kept = metric(app.url, 'lipsformer_reloads_total{outcome="kept"}')
        point(link, damaged)
        until(lambda: metric(app.url, 'lipsformer_reloads_total{outcome="kept"}') == kept + 1)
        assert line in caplog.text
        assert "accepted" not in answer()
        point(link, choosy.bundle)
        until(lambda: "accepted" in answer())
        assert answer()["accepted"] is True
        assert httpx.get(f"{app.url}/info", verify=TLS).json()["calibration"]["acceptance"]["min_score"] == 0.7


def test_a_graph_that_fails_on_one_image_fails_only_for_it(
    trained: Trained, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A real fault in ONNX Runtime: the pixels are an index into a table, and white is out of range."""
    bundle = shutil.copytree(trained.bundle, tmp_path / "bundle")
    graft_fault(bundle)
    white = tmp_path / "white.png"
    Image.new("RGB", (40, 40), "white").save(white)
    with app_running(bundle) as app, asking(app.url, BODY, 8) as load:
        failed = metric(app.url, 'lipsformer_runtime_faults_total{outcome="failed"}')
        rebuilt = metric(app.url, 'lipsformer_runtime_faults_total{outcome="rebuilt"}')
        load.wait_for(20)
        for _ in range(5):
            answer = httpx.post(
                f"{app.url}/classify", content=white.read_bytes(), headers={"Content-Type": "image/png"}, timeout=30
            )
            assert answer.status_code == 500
            assert answer.json()["reason"] == "internal_error"
            assert "Gather" not in answer.text
        load.wait_for(20)
        assert metric(app.url, 'lipsformer_runtime_faults_total{outcome="failed"}') == failed + 5
        assert metric(app.url, 'lipsformer_runtime_faults_total{outcome="rebuilt"}') == rebuilt
    assert set(load.statuses) <= {200, 503}
    assert load.lost == []
    assert "Gather" in caplog.text  # the operator sees what the client does not
    assert "Exception in ASGI application" not in caplog.text


def test_a_fallback_is_logged_counted_and_shown(
    trained: Trained, server: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An engine that was never verified is skipped."""
    bundle = shutil.copytree(trained.bundle, tmp_path / "bundle")
    engine = bundle / "tensorrt-fp32.engine"
    engine.write_bytes(b"a plan")
    facts = {"target": "tensorrt", "precision": "fp32", "parity": {"passed": False}, "built": {"version": "10.13"}}
    manifest = read_manifest(bundle)
    files = (*manifest.files, BundleFile.describe(engine, "engine", **facts))
    dataclasses.replace(manifest, files=files).write(bundle)
    assert metric(server, "lipsformer_runtime_fallbacks_total") == 0
    assert httpx.get(f"{server}/info").json()["runtime"]["fallbacks"] == []
    before = open_metrics().fallbacks._value.get()
    with app_running(bundle) as app:
        runtime = httpx.get(f"{app.url}/info").json()["runtime"]
        assert runtime["file"] == "ort-fp32.onnx"
        (fallback,) = runtime["fallbacks"]
        assert metric(app.url, "lipsformer_runtime_fallbacks_total") == before + 1
        assert 'fallback="true"' in httpx.get(f"{app.url}/metrics").text
    assert [record.levelname for record in caplog.records if record.message == fallback] == ["WARNING"]
    assert engine.name in fallback


@needs_bf16
def test_bf16_is_served_and_shown(trained: Trained, tmp_path: Path) -> None:
    parity = {"passed": True, "provider": "OpenVINO CPU, bf16"}
    with app_running(add_bf16(trained.bundle, tmp_path / "bundle", parity=parity)) as app:
        info = httpx.get(f"{app.url}/info").json()
        answer = httpx.post(f"{app.url}/classify", files={"image": PHOTO.read_bytes()}).json()
    shown = {name: info["runtime"][name] for name in ("provider", "file", "precision", "fallbacks")}
    expected = {"provider": "OpenVINO CPU, bf16", "file": "ort-fp32.onnx", "precision": "bf16", "fallbacks": []}
    assert shown == expected
    assert info["parity"] == parity
    assert (answer["provider"], answer["precision"]) == ("OpenVINO CPU, bf16", "bf16")


def point(link: Path, target: Path) -> None:
    """Points a link elsewhere atomically."""
    draft = link.with_name("next")
    draft.symlink_to(target)
    draft.rename(link)


def renamed(bundle: Path, copy: Path) -> Path:
    """A copy of a bundle whose classes have other names, so that its answers can be recognized."""
    shutil.copytree(bundle, copy)
    manifest = read_manifest(copy)
    dataclasses.replace(manifest, classes=tuple(f"new {label}" for label in manifest.classes)).write(copy)
    return copy


def graft_fault(bundle: Path) -> None:
    """Changes a bundle's graph so that it fails in ONNX Runtime for all-white images."""
    path = bundle / "ort-fp32.onnx"
    manifest = read_manifest(bundle)
    model = onnx.load(path)
    graph = model.graph
    output = graph.output[0].name
    for node in graph.node:
        node.output[:] = ["clean" if name == output else name for name in node.output]
    ends = {"axes": np.array([1, 2, 3]), "table": np.zeros(255, np.float32), "side": np.array([-1, 1])}
    graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in ends.items())
    graph.node.extend(
        [
            onnx.helper.make_node("Cast", ["pixels"], ["whole"], to=onnx.TensorProto.INT64),
            onnx.helper.make_node("ReduceMin", ["whole", "axes"], ["darkest"], keepdims=0),
            onnx.helper.make_node("Gather", ["table", "darkest"], ["nothing"]),
            onnx.helper.make_node("Reshape", ["nothing", "side"], ["column"]),
            onnx.helper.make_node("Add", ["clean", "column"], [output]),
        ]
    )
    onnx.save(model, path)
    files = tuple(
        dataclasses.replace(file, sha256=BundleFile.describe(path, "report").sha256, size=path.stat().st_size)
        if file.name == path.name
        else file
        for file in manifest.files
    )
    dataclasses.replace(manifest, files=files).write(bundle)
