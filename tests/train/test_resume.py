"""A training that was killed, stopped or out of space resumes, bit-identical to an undisturbed one."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lipsformer import InputError
from lipsformer.train import run_folder
from tests.support.nursery import Nursery
from tests.support.tiny_training import TINY, assert_same, states, train_tiny

KILLS = 20
EPOCHS = 2
SETTINGS = ("mixup=0.8", "cutmix=1.0", "rand_augment=9", "random_erasing=0.25", "label_smoothing=0.1")


def start(nursery: Nursery, data: Path, output: Path, *overrides: str) -> int:
    """Starts a training and returns its process; its stderr is appended to `output`.log."""
    settings = [f"--set={override}" for override in (*TINY, *overrides)]
    words = ["train", data, f"--output={output}", f"--epochs={EPOCHS}", *settings]
    return nursery.start(words, Path(f"{output}.log"))


@pytest.fixture(scope="module")
def undisturbed(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("undisturbed") / "run"
    train_tiny(photos, output, *SETTINGS, epochs=EPOCHS)
    return output


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_bit_identical(
    photos: Path, undisturbed: Path, tmp_path: Path, nursery: Nursery
) -> None:
    seed = random.SystemRandom().getrandbits(32)  # never the same moments; the folder has the seed in its name
    draws = random.Random(seed)  # noqa: S311
    started = time.monotonic()
    start(nursery, photos, tmp_path / "whole", *SETTINGS, "save_every=1")
    assert nursery.wait(120) == 0
    whole = time.monotonic() - started  # the moments are drawn from it
    assert_same(tmp_path / "whole", undisturbed)
    kills = finished = unfinished = 0
    while kills < KILLS or unfinished:
        output = tmp_path / f"seed-{seed}-run-{finished}"
        child = start(nursery, photos, output, *SETTINGS, "save_every=1", f"workers={draws.choice([0, 0, 1, 2])}")
        status = nursery.wait(draws.uniform(0, 0.7 * whole) if kills < KILLS else 120)
        if status is None:
            os.kill(child, signal.SIGKILL)
            status = nursery.wait(60)
        if status == -signal.SIGKILL:
            kills, unfinished = kills + 1, 1
            continue
        assert status == 0
        assert_same(output, undisturbed)
        assert not list(output.glob(".*"))  # nothing half-written is left
        finished, unfinished = finished + 1, 0
    assert kills == KILLS


def test_nothing_is_equal_to_another_training(photos: Path, undisturbed: Path, tmp_path: Path) -> None:
    train_tiny(photos, tmp_path / "run", *SETTINGS, "seed=1", epochs=EPOCHS)
    with pytest.raises(AssertionError):
        assert_same(tmp_path / "run", undisturbed)


def wait_for(path: Path) -> None:
    """Waits until a training has written `path`."""
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.001)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_it_saves_its_state_and_resumes(
    number: signal.Signals, photos: Path, undisturbed: Path, tmp_path: Path, nursery: Nursery
) -> None:
    output, log = tmp_path / "run", tmp_path / "run.log"
    child = start(nursery, photos, output, *SETTINGS)
    wait_for(output / "metrics.jsonl")
    os.kill(child, number)
    assert nursery.wait(60) == 128 + number
    last = log.read_text().splitlines()[-1]
    assert f"{output}: stopped at step" in last
    assert "its state is saved; run the same command again to resume" in last
    assert (output / "curves.png").is_file()
    start(nursery, photos, output, *SETTINGS)
    assert nursery.wait(120) == 0
    assert f"{output}: resumed at step" in log.read_text()
    assert "Traceback" not in log.read_text()
    assert_same(output, undisturbed)


def test_killed_it_resumes_bit_for_bit(photos: Path, undisturbed: Path, tmp_path: Path, nursery: Nursery) -> None:
    output = tmp_path / "run"
    child = start(nursery, photos, output, *SETTINGS)
    wait_for(output / "metrics.jsonl")
    os.kill(child, signal.SIGKILL)
    assert nursery.wait(60) == -signal.SIGKILL
    (output / ".last.safetensors.abc.tmp").write_bytes(b"half a file")  # as a kill during a write leaves it
    train_tiny(photos, output, *SETTINGS, epochs=EPOCHS)
    assert_same(output, undisturbed)
    assert not list(output.glob(".*"))


@pytest.mark.parametrize("saves", [0, 1, 5])
def test_full_disk_loses_nothing_that_was_there(
    photos: Path, undisturbed: Path, tmp_path: Path, saves: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, calls = run_folder.save_state, []

    def full(path: Path, *arguments: object) -> None:
        calls.append(path)
        if len(calls) > saves:
            path.parent.mkdir(exist_ok=True)
            path.with_name(f".{path.name}.abc.tmp").write_bytes(b"half a file")
            raise OSError(28, "No space left on device")
        save(path, *arguments)  # type: ignore[arg-type]

    output = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(run_folder, "save_state", full)
        with pytest.raises(
            InputError, match=r"run: cannot be written \(.*No space left.*\); fix that and run the command again"
        ):
            train_tiny(photos, output, *SETTINGS, "save_every=2", epochs=EPOCHS)
    assert len(states(output)) == min(saves, 2)
    train_tiny(photos, output, *SETTINGS, epochs=EPOCHS)
    assert_same(output, undisturbed)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A separate disk of 9 MB: room for the checkpoints of the tiny model and one state."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=9m", "tmpfs", disk], check=False, capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a disk needs root")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def test_a_disk_that_really_is_full_keeps_what_it_holds(photos: Path, undisturbed: Path, small_disk: Path) -> None:
    output = small_disk / "run"
    with pytest.raises(InputError, match=r"cannot be written \(.*No space left on device"):
        train_tiny(photos, output, *SETTINGS, epochs=EPOCHS)
    assert states(output)
    assert not list(output.glob(".*"))  # no draft is left
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    train_tiny(photos, output, *SETTINGS, epochs=EPOCHS)
    assert_same(output, undisturbed)


def test_resumed_with_other_settings_it_says_what_differs(photos: Path, undisturbed: Path) -> None:
    with pytest.raises(InputError, match=r"another recipe \(random_erasing was 0.25, is 0.5; seed was 0, is 4\)"):
        train_tiny(
            photos, undisturbed, *SETTINGS, "random_erasing=0.5", "seed=4", "workers=1", "save_every=7", epochs=EPOCHS
        )
    with pytest.raises(InputError, match="use --resume auto"):
        train_tiny(photos, undisturbed, *SETTINGS, epochs=EPOCHS, resume=False)


def test_only_the_newest_two_states_are_kept(photos: Path, tmp_path: Path) -> None:
    train_tiny(photos, tmp_path / "run", "save_every=1", epochs=2)
    assert [path.name for path in states(tmp_path / "run")] == [f"state-{step:09d}.safetensors" for step in (5, 6)]
