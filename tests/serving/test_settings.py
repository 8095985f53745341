"""Server settings, and what is refused before there is a server."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from lipsformer.serving import serve
from lipsformer.serving import settings as settings_module
from lipsformer.serving.pipeline.loaded_bundle import LoadedBundle
from lipsformer.serving.settings import Settings, worker_count
from lipsformer.system.errors import GateError, InputError
from lipsformer.system.hardware import visible_gpus
from tests.support.trained import Trained


def test_settings_come_from_the_environment() -> None:
    settings = Settings.from_environment(
        {
            "LIPSFORMER_BUNDLE": "/a/b",
            "LIPSFORMER_MAX_BYTES": "1000",
            "LIPSFORMER_DECODE_MEMORY": "256",
            "LIPSFORMER_CORS_ORIGINS": "https://a.example, http://localhost:8000",
            "LIPSFORMER_LOG": "json",
            "LIPSFORMER_ACCESS_LOG": "off",
            "LIPSFORMER_API_KEYS_FILE": "keys",
        }
    )
    assert settings.bundle == Path("/a/b")
    assert settings.limits.max_bytes == 1000
    assert settings.max_body > 1000
    assert settings.decode_memory == 256
    assert settings.cors_origins == ("https://a.example", "http://localhost:8000")
    assert (settings.log, settings.access_log) == ("json", "off")
    assert settings.api_keys_file == Path.cwd() / "keys"
    assert settings.watch is None


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"LIPSFORMER_MAX_BYTES": "lots"}, "LIPSFORMER_MAX_BYTES='lots': a whole number is needed"),
        ({"LIPSFORMER_MAX_PENDING": "0"}, "LIPSFORMER_MAX_PENDING='0': it must be at least 1"),
        ({"LIPSFORMER_DEVICE": "tpu"}, "--device tpu: one of auto, cpu, cuda"),
        ({"LIPSFORMER_LOG": "xml"}, "LIPSFORMER_LOG='xml': use 'text' or 'json'"),
        ({"LIPSFORMER_ACCESS_LOG": "1"}, "LIPSFORMER_ACCESS_LOG='1': use 'on' or 'off'"),
        ({"LIPSFORMER_CORS_ORIGINS": "example.org"}, "LIPSFORMER_CORS_ORIGINS=example.org: an origin such as"),
        ({"LIPSFORMER_CORS_ORIGINS": "https://example.org/"}, "an origin such as"),
    ],
)
def test_bad_settings_are_named(environment: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Settings.from_environment(environment)


def test_workers_are_one_for_each_gpu_or_four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings_module, "cores", lambda: 9)
    assert worker_count({"CUDA_VISIBLE_DEVICES": ""}) == 3
    assert worker_count({"CUDA_VISIBLE_DEVICES": "0,3"}) == 2
    assert worker_count({"CUDA_VISIBLE_DEVICES": "0,3", "LIPSFORMER_DEVICE": "cpu"}) == 3
    assert worker_count({"CUDA_VISIBLE_DEVICES": "0,3", "LIPSFORMER_WORKERS": "7"}) == 7
    assert Settings.from_environment({"LIPSFORMER_WORKERS": "3"}).threads >= 1
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "-1"}) == ()
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "GPU-1, GPU-2"}) == ("GPU-1", "GPU-2")


def test_a_batch_beyond_the_proved_one_is_refused(trained: Trained) -> None:
    environment = {"LIPSFORMER_BUNDLE": str(trained.bundle), "LIPSFORMER_MAX_BATCH": "64"}
    with pytest.raises(InputError, match="LIPSFORMER_MAX_BATCH=64: the export verified batches up to 16"):
        LoadedBundle.load(Settings.from_environment(environment), on_fault=lambda _: None)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside BentoML, while it is imported
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"MAX_BATCH": "64"}, "lipsformer: LIPSFORMER_MAX_BATCH=64: the export verified batches up to 16"),
        ({"API_KEYS_FILE": "/no/keys"}, "lipsformer: LIPSFORMER_API_KEYS_FILE=/no/keys: cannot be read"),
        ({"DEVICE": "cuda"}, "lipsformer: --device cuda: ONNX Runtime fell back to the CPU"),
    ],
)
def test_what_cannot_be_served_is_one_line_before_any_worker(
    trained: Trained,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, str],
    message: str,
) -> None:
    from lipsformer.serving.bento.service import Classifier

    for name, value in {"BUNDLE": str(trained.bundle), **changes}.items():
        monkeypatch.setenv(f"LIPSFORMER_{name}", value)
    with pytest.raises(SystemExit) as ending:
        Classifier.inner.check()
    assert ending.value.code == 2
    assert capsys.readouterr().err.startswith(message)


@pytest.mark.slow
def test_what_cannot_be_served_ends_bentoml_itself(trained: Trained, tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "LIPSFORMER_BUNDLE": str(trained.bundle),
        "LIPSFORMER_MAX_BATCH": "64",
        "BENTOML_HOME": str(tmp_path),
        "BENTOML_DO_NOT_TRACK": "True",
    }
    command = [sys.executable, "-m", "bentoml", "serve", "lipsformer.serving.bento.service:Classifier", "--port", "0"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "lipsformer: LIPSFORMER_MAX_BATCH=64" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_tampered_bundle_is_not_served(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = shutil.copytree(trained.bundle, tmp_path / "bundle")
    with (bundle / "ort-fp32.onnx").open("ab") as file:
        file.write(b" ")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    monkeypatch.setattr(os, "execve", lambda *_: pytest.fail("it was served"))
    with pytest.raises(GateError, match="SHA-256"):
        serve(bundle, host="127.0.0.1", port=port)
    for wrong in ({"workers": 0}, {"watch": 0}, {"device": "tpu"}):
        with pytest.raises(InputError, match=r"it must be at least 1|one of auto"):
            serve(trained.bundle, host="127.0.0.1", port=port, **wrong)  # type: ignore[arg-type]
