"""The wheel holds what the tree holds, and works installed, from another directory."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.request
import venv
import zipfile
from pathlib import Path

import pytest

from tests.support.trained import Trained

ROOT = Path(__file__).parents[2]
PARTS = {
    "lipsformer": "lipsformer",
    "train": "lipsformer/train",
    "export": "lipsformer/export",
    "serving": "lipsformer/serving",
}
PHOTO = ROOT / "lipsformer" / "images" / "samples" / "Kaiser.jpg"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a clean copy of the tree: a build folder left in the tree would be packed too."""
    folder = tmp_path_factory.mktemp("wheel")
    tree = folder / "tree"
    for part in PARTS:
        shutil.copytree(ROOT / part, tree / part, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder, tree],
        check=True,
    )
    return next(folder.glob("lipsformer-*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command in another environment: the wheel, with this one's packages but not its editable install."""
    root = tmp_path_factory.mktemp("environment")
    venv.create(root, with_pip=False)
    python = root / "bin" / "python"
    site = Path(sysconfig.get_path("purelib", vars={"base": str(root), "platbase": str(root)}))
    site.joinpath("borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")  # its own .pth files stay unread
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "--python",
            python,
            "install",
            "--quiet",
            "--no-deps",
            "--ignore-installed",
            wheel,
        ],
        check=True,
    )
    return root / "bin" / "lipsformer"


def test_the_wheel_holds_the_tree_and_nothing_else(wheel: Path) -> None:
    expected = set()
    for part, place in PARTS.items():
        for file in (ROOT / part).rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts:
                expected.add(f"{place}/{file.relative_to(ROOT / part).as_posix()}")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert packed == expected
    assert {name.split("/")[0] for name in packed} == {"lipsformer"}  # no `train` that hides a user's own train.py


def test_the_installed_command_works_elsewhere(installed: Path, trained: Trained, tmp_path: Path) -> None:
    # A user's own files of these names must not be taken for ours.
    for name in ("train.py", "export.py", "serving.py"):
        (tmp_path / name).write_text("raise SystemExit('the wrong file ran')")

    def run(*arguments: object) -> str:
        done = subprocess.run(
            [installed, *map(str, arguments)], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "predict" in run("--help")
    assert len(json.loads(run("models", "--json"))) >= 4
    (answer,) = json.loads(run("predict", trained.bundle, PHOTO, "--json"))
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    log = (tmp_path / "server.log").open("w+")
    server = subprocess.Popen([installed, "serve", trained.bundle, "--port", str(port)], cwd=tmp_path, stderr=log)
    try:
        served = classify(f"http://127.0.0.1:{port}", server)
    finally:
        server.terminate()
        assert server.wait(30) == 0
        log.close()
    assert [p["label"] for p in served] == [p["label"] for p in answer["predictions"]]
    assert [p["score"] for p in served] == pytest.approx([p["score"] for p in answer["predictions"]], abs=1e-4)


def classify(url: str, server: subprocess.Popen[bytes]) -> list[dict[str, object]]:
    """The predictions for the photo, once the server is ready."""
    deadline = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(f"{url}/readyz", timeout=5).close()
            break
        except OSError:
            assert server.poll() is None, "the server stopped"
            assert time.monotonic() < deadline, "the server was not ready within a minute"
            time.sleep(0.2)
    request = urllib.request.Request(f"{url}/classify", data=PHOTO.read_bytes(), headers={"Content-Type": "image/jpeg"})
    with urllib.request.urlopen(request, timeout=30) as response:
        predictions: list[dict[str, object]] = json.load(response)["predictions"]
    return predictions


def test_a_wheel_without_the_parts_is_refused(tmp_path: Path) -> None:
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "lipsformer", tmp_path / "lipsformer", symlinks=True)
    (tmp_path / "lipsformer" / "train").unlink()
    (tmp_path / "lipsformer" / "train").write_text("../train")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "lipsformer/train is not a link to ../train" in done.stdout + done.stderr


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_a_checkout_works_without_being_installed(tmp_path: Path, links: bool) -> None:
    """Also where links cannot be: there git writes a small text file in place of each."""
    tree = tmp_path / "tree"
    for part in PARTS:
        shutil.copytree(ROOT / part, tree / part, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    if not links:
        for part in ("train", "export", "serving"):
            (tree / "lipsformer" / part).unlink()
            (tree / "lipsformer" / part).write_text(f"../{part}")
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    code = "import lipsformer.train, lipsformer.export, lipsformer.serving.settings as s; print(s.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(tree / ("lipsformer/serving" if links else "serving") / "settings.py")


def test_the_installed_command_packs_the_same_bento_as_the_checkout(
    installed: Path, trained: Trained, tmp_path: Path
) -> None:
    environment = {**os.environ, "BENTOML_HOME": str(tmp_path / "home"), "BENTOML_DO_NOT_TRACK": "True"}
    for version, command in (("wheel", [installed]), ("checkout", [sys.executable, "-m", "lipsformer"])):
        words = ["bento", trained.bundle, "--version", version]
        done = subprocess.run(
            [*command, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert f"bentoml serve lipsformer-classifier:{version}" in done.stdout
    packed = tmp_path / "home" / "bentos" / "lipsformer-classifier"

    def files(version: str) -> dict[str, bytes]:
        source = packed / version / "src"
        return {str(file.relative_to(source)): file.read_bytes() for file in source.rglob("*") if file.is_file()}

    assert files("wheel") == files("checkout")
    assert "serving/bento/service.py" in files("wheel")
