"""Bentos: their content, what is refused, and that they serve without the tree that they were built from."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from packaging.requirements import Requirement

from lipsformer import InputError, load_predictor
from lipsformer.bundle.manifest import BundleFile, Manifest, read_manifest
from lipsformer.images.samples import SAMPLES
from lipsformer.inference.page import MEDIA_TYPES
from lipsformer.serving.bento.package import EXTRAS, NAME, Bento, build_options, pack, requirements
from lipsformer.system.errors import GateError
from tests.support.bf16 import add_bf16
from tests.support.http.server import running
from tests.support.trained import Trained

ROOT = Path(__file__).parents[2]
PHOTO = SAMPLES / "Kaiser.jpg"

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside BentoML, while it is imported


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A separate BentoML folder, for this process and those that it starts."""
    from bentoml._internal.configuration.containers import BentoMLContainer

    folder = tmp_path_factory.mktemp("bentoml")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BENTOML_HOME", str(folder))
        patch.setenv("BENTOML_DO_NOT_TRACK", "True")
        (folder / "tmp").mkdir()
        (folder / "bentos").mkdir()
        with BentoMLContainer.bentoml_home.patch(str(folder)):
            yield folder


@pytest.fixture(scope="module")
def bento(trained: Trained, home: Path) -> Bento:
    """The small bundle, packed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIPSFORMER_WORKERS", "none of the build's business")
        return pack(trained.bundle, version="v1")


@pytest.fixture(scope="module")
def fresh(bento: Bento, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment with the Bento's requirements and nothing else."""
    folder = tmp_path_factory.mktemp("fresh") / "venv"
    uv = [sys.executable, "-m", "uv", "--quiet"]  # BentoML brings it
    subprocess.run([*uv, "venv", "--python", sys.executable, folder], check=True)
    wanted = bento.path / "env" / "python" / "requirements.txt"
    install = ["pip", "install", "--compile-bytecode", "--python", folder / "bin" / "python", "-r", wanted]
    subprocess.run([*uv, *install], check=True)
    return folder / "bin"


@contextlib.contextmanager
def ending_well(
    command: list[object], cwd: Path, environment: dict[str, str]
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The URL and the process of a server, ready to answer; it is ended, and must end well."""
    log = cwd / "server.log"
    with running([*map(str, command)], log, environment, cwd) as (url, process):
        yield url, process
    assert process.returncode == 0, log.read_text()


def classified(url: str) -> dict[str, Any]:
    """The server's answer to the photo."""
    answer = httpx.post(f"{url}/classify", files={"image": PHOTO.read_bytes()}, timeout=30)
    assert answer.status_code == 200, answer.text
    result: dict[str, Any] = answer.json()
    return result


def labels(bundle: Path) -> list[str]:
    """The labels that this process predicts for the photo."""
    (best,) = load_predictor(bundle, "cpu").predict([PHOTO])
    return [prediction.label for prediction in best]


def contents(folder: Path) -> set[str]:
    """The files below a folder."""
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}


def test_requirements_are_those_of_the_installed_package(monkeypatch: pytest.MonkeyPatch) -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [
        *declared["dependencies"],
        *(line for extra in declared["optional-dependencies"].values() for line in extra),
    ]
    installed = {line for extra in (*EXTRAS, "cpu", "gpu", "train") for line in requirements(extra)}
    stale = [line for line in installed if Requirement(line) not in map(Requirement, lines)]
    assert not stale, f"{stale} are not in pyproject.toml; install again: pip install -e ."
    monkeypatch.setattr(
        metadata,
        "requires",
        lambda _: [
            "numpy>=2.0",
            "typer>=0.20",
            "uvloop>=0.21; sys_platform != 'win32' and extra == 'x'",
            "lipsformer[x]; extra == 'y'",
            "onnx>=1.20; extra == 'y'",
        ],
    )
    assert requirements() == ["numpy>=2.0"]
    assert requirements("x") == ["numpy>=2.0", "uvloop>=0.21; sys_platform != 'win32'"]
    assert requirements("y") == ["numpy>=2.0", "onnx>=1.20"]
    with pytest.raises(InputError, match=r"has no extra serve; install it again"):
        requirements("serve")


def test_bentofile_says_what_the_command_says(trained: Trained) -> None:
    written = yaml.safe_load((ROOT / "bentofile.yaml").read_text())
    options = build_options(read_manifest(trained.bundle))
    del options["description"]  # of this bundle
    options["labels"] = {"project": "lipsformer"}
    assert written == options


def test_a_gpu_image_gets_the_tensorrt_of_its_verified_engines(trained: Trained) -> None:
    def packages(*files: BundleFile) -> list[str]:
        packed = dataclasses.replace(manifest, files=(*manifest.files, *files))
        chosen: list[str] = build_options(packed, gpu=True)["python"]["packages"]
        return chosen

    manifest = read_manifest(trained.bundle)
    engine = BundleFile(
        name="a.engine",
        kind="engine",
        sha256="",
        size=1,
        target="tensorrt",
        precision="fp32",
        parity={"passed": True},
        built={"version": "10.13.2.6"},
    )
    assert "onnxruntime-gpu[cuda,cudnn]>=1.24" in packages()
    assert not [line for line in packages() if line.startswith("onnxruntime>")]
    assert not [line for line in packages() if line.startswith(("torch", "tensorrt"))]
    assert {"tensorrt==10.13.2.6", "torch>=2.11"} <= set(packages(engine))
    unverified = dataclasses.replace(engine, parity={"passed": False, "reason": "no GPU"})
    assert packages(unverified) == packages()
    assert environment_of(manifest, gpu=True)["LIPSFORMER_DEVICE"] == "cuda"
    assert environment_of(manifest)["LIPSFORMER_DEVICE"] == "cpu"
    assert "LIPSFORMER_PRECISION" not in environment_of(manifest)
    assert environment_of(manifest, precision="fp32")["LIPSFORMER_PRECISION"] == "fp32"


def test_a_cpu_image_gets_openvino_if_the_bundle_has_bf16(trained: Trained, tmp_path: Path) -> None:
    plain = read_manifest(trained.bundle)
    with_bf16 = read_manifest(add_bf16(trained.bundle, tmp_path / "bundle", speedup={}))
    found = [build_options(manifest)["python"]["packages"] for manifest in (plain, with_bf16)]
    assert {*found[1]} - {*found[0]} == {"openvino>=2026.4"}
    assert "openvino>=2026.4" not in build_options(with_bf16, gpu=True)["python"]["packages"]


def environment_of(manifest: Manifest, **options: Any) -> dict[str, str]:
    """The variables of the image."""
    return {entry["name"]: entry["value"] for entry in build_options(manifest, **options)["envs"]}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "lipsformer"}, "installed package"),
        ({"name": "a b"}, "not a valid BentoML name"),
        ({"name": "Fruit"}, "lowercase letters"),
        ({"version": "latest"}, "latest"),
        ({"version": "../v"}, "not a valid BentoML name"),
        ({"version": "taken"}, "already in BentoML's store"),
        ({"precision": "int8"}, "the bundle has fp32"),
    ],
)
def test_what_cannot_be_packed_is_refused_before_any_work(
    trained: Trained, home: Path, options: dict[str, str], words: str
) -> None:
    (home / "bentos" / NAME / "taken").mkdir(parents=True, exist_ok=True)
    before = contents(home)
    with pytest.raises(InputError, match=words):
        pack(trained.bundle, **options)  # type: ignore[arg-type]
    assert contents(home) == before


def test_a_changed_bundle_is_not_packed(trained: Trained, home: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(trained.bundle, tmp_path / "bundle")
    graph = next(bundle.glob("*.onnx"))
    graph.write_bytes(graph.read_bytes()[:-1] + b"!")
    with pytest.raises(GateError, match=graph.name):
        pack(bundle, version="changed")
    assert not (home / "bentos" / NAME / "changed").exists()


@pytest.mark.slow
def test_a_build_that_fails_leaves_nothing_and_says_why(
    trained: Trained, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UV_OFFLINE", "1")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path))
    before = contents(home)
    with pytest.raises(InputError, match=r"Failed to lock PyPI packages.*asks PyPI"):
        pack(trained.bundle, version="offline")
    assert contents(home) == before
    assert list((home / "tmp").iterdir()) == []


@pytest.mark.slow
def test_a_bento_carries_what_serving_needs(trained: Trained, home: Path, bento: Bento) -> None:
    assert bento.tag == f"{NAME}:v1"
    assert (bento.path.parent / "latest").read_text() == "v1"
    assert bento.path == home / "bentos" / NAME / "v1"
    assert bento.size == sum((bento.path / file).stat().st_size for file in contents(bento.path))
    serving = {f"serving/{file}" for file in contents(ROOT / "serving") if "__pycache__" not in file}
    core = {"lipsformer/__init__.py"} | {
        f"lipsformer/{folder}/{file.name}"
        for folder in (
            "bundle",
            "images",
            "images/decoding",
            "inference",
            "inference/page",
            "inference/runtimes",
            "system",
        )
        for file in (ROOT / "lipsformer" / folder).iterdir()
        if file.suffix in (".py", *MEDIA_TYPES)
    }
    bundle = {f"bundle/{file}" for file in contents(trained.bundle)}
    assert contents(bento.path / "src") == serving | core | bundle | {"bentofile.yaml"}
    packages = [line.split("==")[0] for line in (bento.path / "env/python/requirements.txt").read_text().splitlines()]
    assert {"bentoml", "onnxruntime", "uvicorn"} <= set(packages)
    assert not {"lipsformer", "torch", "onnx"} & set(packages)


@pytest.mark.slow
def test_the_image_runs_without_rights_on_a_fixed_python(bento: Bento) -> None:
    recipe = (bento.path / "env" / "docker" / "Dockerfile").read_text()
    lines = [line.strip() for line in recipe.splitlines() if line.strip()]
    assert "FROM python:3.11-slim AS base-container" in lines
    assert [line for line in lines if line.startswith("USER")] == ["USER bentoml"]
    assert lines.index("USER bentoml") < next(i for i, line in enumerate(lines) if line.startswith("ENTRYPOINT"))
    assert "ARG BENTO_USER_UID=1034" in lines  # what deploy/ runs it as
    homes = [line for line in lines if "BENTOML_HOME=" in line]
    assert homes[-2:] == ["ARG BENTOML_HOME=/tmp/bentoml", "ENV BENTOML_HOME=$BENTOML_HOME"]  # after BentoML's own


@pytest.mark.slow
def test_a_bento_serves_as_its_image_does(trained: Trained, bento: Bento, fresh: Path, tmp_path: Path) -> None:
    """By the image's own entry, in an environment of just its packages, away from the tree; it writes to /tmp alone."""
    moved = shutil.copytree(bento.path, tmp_path / "bento")
    before = contents(moved)
    for folder in ("scratch", "home", "work"):
        (tmp_path / folder).mkdir()
    environment = {
        "PATH": f"{fresh}:{os.defpath}",
        "HOME": str(tmp_path / "home"),
        "TMPDIR": str(tmp_path / "scratch"),
        "BENTOML_HOME": str(tmp_path / "scratch" / "bentoml"),
        "BENTOML_DO_NOT_TRACK": "True",
        "BENTOML_CONTAINERIZED": "true",
        "BENTO_PATH": str(moved),
        "LIPSFORMER_DEVICE": "cpu",
        "LIPSFORMER_WORKERS": "2",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    with ending_well(["bash", moved / "env/docker/entrypoint.sh"], tmp_path / "work", environment) as (url, server):
        answer = classified(url)
        assert [prediction["label"] for prediction in answer["predictions"]] == labels(trained.bundle)
        # In a container BentoML itself would not restart a worker that dies.
        os.kill(worker_of(server.pid), signal.SIGKILL)
        deadline = time.monotonic() + 60
        while (starts := worker_starts(url)) < 3 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert starts == 3
        assert classified(url)["predictions"] == answer["predictions"]
    assert contents(moved) == before
    assert list((tmp_path / "home").iterdir()) == []


def worker_of(master: int) -> int:
    """One of the worker processes of a server."""
    import psutil

    return next(
        child.pid for child in psutil.Process(master).children() if "_bentoml_impl.worker.service" in child.cmdline()
    )


def worker_starts(url: str) -> float:
    """How many workers were started, by the metrics of all of them."""
    lines = httpx.get(f"{url}/metrics", timeout=30).text.splitlines()
    (count,) = (line.split()[1] for line in lines if line.startswith("lipsformer_worker_starts_total "))
    return float(count)


@pytest.mark.slow
def test_bentofile_alone_builds_one_that_serves_by_its_name(
    trained: Trained, bento: Bento, fresh: Path, tmp_path: Path
) -> None:
    tree = tmp_path / "tree"
    for part in ("lipsformer", "serving"):
        shutil.copytree(ROOT / part, tree / part, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(trained.bundle, tree / "bundle")
    for name in ("bentofile.yaml", "README.md"):
        shutil.copy(ROOT / name, tree)
    (tmp_path / "work").mkdir()
    environment = {**os.environ, "BENTOML_HOME": str(tmp_path / "home"), "BENTOML_DO_NOT_TRACK": "True"}
    subprocess.run(
        [sys.executable, "-m", "bentoml", "build"], cwd=tree, env=environment, check=True, capture_output=True
    )
    (built,) = (tmp_path / "home" / "bentos").glob("*/*/src")
    assert contents(built) == contents(bento.path / "src")
    shutil.rmtree(tree)
    with ending_well([fresh / "bentoml", "serve", f"{NAME}:latest"], tmp_path / "work", environment) as (url, _):
        assert [prediction["label"] for prediction in classified(url)["predictions"]] == labels(trained.bundle)
