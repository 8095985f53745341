"""The README's commands and program, run as they stand; options are only added to save time."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lipsformer import cli
from lipsformer.images.samples import SAMPLES
from tests.support.http.server import running

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
ELSEWHERE = ("data", "serve")  # `make quickstart` downloads the photos; a separate test starts the server
FASTER = {
    "train": ["--epochs", "1"],
    "export": ["--parity-images", "14"],
    "benchmark": ["--rounds", "1", "--seconds", "0.01", "--threads", "1"],
}

pytestmark = pytest.mark.slow


def shell_lines(start: str) -> list[list[str]]:
    """The words of each line of the README's shell blocks that begins with `start`, without comments."""
    blocks = "".join(re.findall(r"```sh\n(.*?)```", README, re.DOTALL))
    return [shlex.split(line, comments=True) for line in blocks.splitlines() if line.startswith(f"{start} ")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the README assumes it: photos, and the 14 sample photos as a small fruit dataset."""
    root = tmp_path_factory.mktemp("readme")
    for photo in SAMPLES.glob("*.jpg"):
        for split in ("train", "test"):
            (root / "fruit" / split / photo.stem).mkdir(parents=True)
            shutil.copy(photo, root / "fruit" / split / photo.stem)
    for name in ("photo.jpg", "a.jpg", "b.jpg"):
        shutil.copy(SAMPLES / "Kaiser.jpg", root / name)
    return root


@pytest.fixture(scope="module")
def done(folder: Path) -> Path:
    """The folder after all commands except those of ELSEWHERE."""
    commands = [words for words in shell_lines("lipsformer") if words[1] not in ELSEWHERE]
    assert len(commands) >= 6
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for _, *words in commands:
            patch.setattr(sys, "argv", ["lipsformer", *words, *FASTER.get(words[0], [])])
            with pytest.raises(SystemExit) as stop:
                cli.main()
            assert not stop.value.code, shlex.join(sys.argv)
    return folder


def test_the_commands_run_in_their_order(done: Path) -> None:
    assert (done / "bundle" / "manifest.json").is_file()
    assert (done / "runs" / "fruit" / "best.safetensors").is_file()


def test_the_server_answers_the_requests(done: Path, tmp_path: Path) -> None:
    (serve,) = ([sys.executable, "-m", *words] for words in shell_lines("lipsformer") if words[1] == "serve")
    requests = shell_lines("curl")
    assert len(requests) == 3
    with running(serve, tmp_path / "log", os.environ, cwd=done) as (url, _):
        for words in requests:
            command = [word.replace("http://127.0.0.1:3000", url) for word in words]
            run = subprocess.run([*command, "--silent"], cwd=done, capture_output=True, check=True)
            answer = json.loads(run.stdout)
            assert answer.get("predictions") or all(result["predictions"] for result in answer["results"])


def test_the_program_runs(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    monkeypatch.chdir(folder)
    exec(program, {})  # noqa: S102 - our own README
    assert capsys.readouterr().out.count("Prediction(") == 3
