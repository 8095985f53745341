"""Outputs appear whole or not at all, also when the process is killed."""

# ruff: noqa: PT012 - the blocks under test write first and fail then

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from lipsformer.system.atomic import atomic_directory, atomic_write, sha256_of
from lipsformer.system.errors import InputError


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_a_file_appears_once_the_block_has_ended(tmp_path: Path) -> None:
    path = tmp_path / "new" / "model.bin"
    with atomic_write(path) as draft:
        draft.write_bytes(b"whole")
        assert not path.exists()
        assert draft.parent == path.parent
    assert path.read_bytes() == b"whole"
    assert names(path.parent) == ["model.bin"]


def test_a_file_that_cannot_be_hashed_is_reported(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none: cannot be read \(No such file or directory\)"):
        sha256_of(tmp_path / "none")


def test_an_error_keeps_the_old_file_and_leaves_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), atomic_write(path) as draft:
        draft.write_bytes(b"half")
        raise ZeroDivisionError
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["model.bin"]


def test_published_files_have_the_usual_permissions(tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "file") as draft:
            draft.write_bytes(b"")
        with atomic_directory(tmp_path / "folder"):
            pass
    finally:
        os.umask(mask)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o750


def test_a_folder_in_place_of_the_file_is_reported_first(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a folder; give the name of a file"), atomic_write(tmp_path):
        pytest.fail("the block ran")


@pytest.mark.parametrize("publish", [atomic_write, atomic_directory])
def test_a_place_below_a_file_is_reported(publish: object, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert callable(publish)
    with pytest.raises(InputError, match="cannot be written"), publish(tmp_path / "file" / "below"):
        pytest.fail("the block ran")


def test_a_directory_appears_whole(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "first"
    with atomic_directory(path) as draft:
        (draft / "deep").mkdir()
        (draft / "deep" / "file").write_text("x")
        assert not path.exists()
    assert (path / "deep" / "file").read_text() == "x"
    assert names(path.parent) == ["first"]


@pytest.mark.parametrize("kind", ["filled folder", "file", "dangling link"])
def test_what_exists_is_refused_before_the_work(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "out"
    if kind == "file":
        path.write_text("mine")
    elif kind == "dangling link":
        path.symlink_to("nowhere")
    else:
        path.mkdir()
        (path / "mine").touch()
    with pytest.raises(InputError, match="exists already; choose another --output"), atomic_directory(path):
        pytest.fail("the block ran")
    assert names(tmp_path) == ["out"]


def test_an_empty_folder_counts_as_free(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with atomic_directory(tmp_path / "out") as draft:
        (draft / "file").touch()
    assert names(tmp_path / "out") == ["file"]


def test_what_appears_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with pytest.raises(InputError, match="exists already"), atomic_directory(path) as draft:
        (draft / "ours").touch()
        path.mkdir()
        (path / "theirs").touch()
    assert names(path) == ["theirs"]
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("publish", [atomic_write, atomic_directory])
def test_a_place_that_cannot_be_written_is_reported(publish: Callable[[Path], AbstractContextManager[Path]]) -> None:
    for place in ("/proc/out", "/dev/null/out", "/" + "x" * 300):
        with pytest.raises(InputError, match=r": cannot be written \(.*\); check the path"), publish(Path(place)):
            pytest.fail("it let us write")


@pytest.mark.parametrize("publish", ["atomic_write(path)", "atomic_directory(path)"])
def test_a_kill_in_the_middle_keeps_what_was_there(publish: str, tmp_path: Path) -> None:
    path = tmp_path / "out"
    if "file" in publish:
        path.write_bytes(b"old")
    script = f"""
import pathlib, sys, time
from lipsformer.system.atomic import atomic_directory, atomic_write
path = pathlib.Path({str(path)!r})
with {publish} as draft:
    (draft / "new" if draft.is_dir() else draft).write_bytes(b"half")
    print("writing", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        process.kill()
    assert process.returncode == -signal.SIGKILL
    left = {name: (tmp_path / name).read_bytes() for name in names(tmp_path) if not name.startswith(".")}
    assert left == ({"out": b"old"} if "file" in publish else {})


def test_only_drafts_of_killed_processes_are_removed(tmp_path: Path) -> None:
    script = f"""
import pathlib, time
from lipsformer.system.atomic import atomic_directory
with atomic_directory(pathlib.Path({str(tmp_path / "out")!r})) as draft:
    (draft / "half").touch()
    print("writing", flush=True)
    time.sleep(60)
"""
    other = tmp_path / ".another.x.tmp"
    other.mkdir()
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        (living,) = (path for path in tmp_path.iterdir() if path != other)
        with atomic_directory(tmp_path / "out"):
            assert (living / "half").exists()
            assert len(names(tmp_path)) == 3
        process.kill()
    (tmp_path / "out").rmdir()
    with atomic_directory(tmp_path / "out"):
        assert not living.exists()
        assert len(names(tmp_path)) == 2
    assert names(tmp_path) == [".another.x.tmp", "out"]


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_of(tmp_path / "file") == expected
