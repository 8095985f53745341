"""What the group of commands offers by itself: version, help, exit status, shell completion."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lipsformer import __version__, cli
from lipsformer.system.console import is_quiet
from tests.support.trained import Trained


def lipsformer(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs the command as a user does."""
    return subprocess.run(
        [sys.executable, "-m", "lipsformer", *words],
        env=os.environ | environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


def shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> str:
    """What the command prints in this process, ended with status 0."""
    monkeypatch.setattr(sys, "argv", ["lipsformer", *words])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def test_version(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(capsys, monkeypatch, "--version") == f"lipsformer {__version__}\n"


@pytest.mark.parametrize("command", [(), ("train",), ("export",)])
def test_h_is_help(
    command: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shown(capsys, monkeypatch, *command, "-h") == shown(capsys, monkeypatch, *command, "--help")


def test_the_help_lists_the_exit_codes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    text = " ".join(shown(capsys, monkeypatch, "--help").split())
    for meaning in ("0 done", "1 a check failed", "2 bad input", "130 interrupted", "143 ended by SIGTERM"):
        assert meaning in text


def test_the_shell_completes_commands_and_options() -> None:
    def completed(words: str) -> list[str]:
        done = lipsformer(
            _LIPSFORMER_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=str(len(words.split(" ")) - 1)
        )
        return done.stdout.split()

    assert completed("lipsformer exp") == ["explain", "export"]
    assert set(completed("lipsformer data ")) == {"check", "fetch"}
    assert {"--strict"} <= set(completed("lipsformer data check --str"))
    assert {"--recipe", "--resume"} <= set(completed("lipsformer train --re"))


@pytest.mark.parametrize(
    "command", ["data fetch", "data check", "train", "stability", "eval", "export", "verify", "benchmark", "lipschitz"]
)
def test_long_commands_have_quiet(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert re.search(r"--quiet\s+-q", shown(capsys, monkeypatch, *command.split(), "--help"))


def test_quiet_shows_the_result_and_ends_with_the_command(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = shown(capsys, monkeypatch, "export", str(trained.checkpoint), "--output", str(tmp_path / "bundle"), "-q")
    assert "Bundle:" in text
    assert not is_quiet()
