"""Stopping and resuming a bulk prediction: the same bytes in the end, and nothing is computed twice."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from lipsformer.images.samples import SAMPLES
from lipsformer.inference.bulk import Part, engine
from lipsformer.inference.bulk import bulk as module
from lipsformer.inference.bulk.state import BulkState
from lipsformer.system.errors import InputError, StoppedError
from tests.support.bulk import bulk, forbid_repetition, json_rows, watched
from tests.support.nursery import Nursery
from tests.support.trained import Trained

PHOTOS = sorted(SAMPLES.glob("*.jpg"))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of 15 photos and 2 bad files."""
    shutil.copytree(SAMPLES, tmp_path / "photos", ignore=shutil.ignore_patterns("*.py", "LICENSE"))
    shutil.copy(PHOTOS[0], tmp_path / "photos" / "Zucchini.jpg")
    (tmp_path / "photos" / "Anjou-2.jpg").touch()
    (tmp_path / "photos" / "Kaiser-2.jpg").symlink_to("nowhere")
    return tmp_path / "photos"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_keeps_what_was_computed(number: int, photos: Path, trained: Trained, tmp_path: Path) -> None:
    whole = bulk(watched(trained.bundle)[0], tmp_path / "whole.parquet", photos, photos, features=True)
    output = tmp_path / "rows.parquet"
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    computed = 0
    for batch in (1, 2, 3, 1000):
        predictor, runtime = watched(
            trained.bundle, lambda count, batch=batch: os.kill(os.getpid(), number) if count == batch else None
        )
        if batch == 1000:
            assert bulk(predictor, output, photos, photos, features=True) == whole
        else:
            with pytest.raises(StoppedError, match=r"partial: stopped, \d+ images done; run the same command") as stop:
                bulk(predictor, output, photos, photos, features=True)
            assert stop.value.exit_code == 128 + number
            assert not output.exists()
        computed += runtime.images
        assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    assert computed == 30  # what had begun was finished and saved
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "rows.parquet", "whole.parquet"]


def test_a_signal_while_nothing_comes_on_stdin(trained: Trained, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM))
    with open(reading) as stdin, open(writing, "w") as names, pytest.MonkeyPatch.context() as patch:  # noqa: PTH123
        patch.setattr("sys.stdin", stdin)
        names.write(f"{PHOTOS[0]}\n")
        names.flush()
        timer.start()
        with pytest.raises(StoppedError, match="stopped, 0 images done"):
            bulk(watched(trained.bundle)[0], tmp_path / "rows.jsonl", "-")


def test_a_failure_of_the_runtime_keeps_the_rest(photos: Path, trained: Trained, tmp_path: Path) -> None:
    def fail(count: int) -> None:
        if count == 3:
            raise ZeroDivisionError

    predictor, runtime = watched(trained.bundle, fail)
    with pytest.raises(ZeroDivisionError):
        bulk(predictor, tmp_path / "rows.csv", photos)
    first = runtime.images
    predictor, runtime = watched(trained.bundle)
    assert bulk(predictor, tmp_path / "rows.csv", photos).count(b"\n") == 18
    assert 15 <= first + runtime.images <= 15 + 4  # one block was computed behind the failed one


def test_other_settings_are_refused_and_say_what_differs(
    photos: Path, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "rows.jsonl"
    with pytest.raises(StoppedError):
        bulk(watched(trained.bundle, lambda _: os.kill(os.getpid(), signal.SIGTERM))[0], output, photos)
    assert json_rows(b"") == []
    other, _ = watched(trained.checkpoint.parent / "bundle")
    object.__setattr__(other, "file", trained.checkpoint)
    for predictor, sources, options, message in (
        (watched(trained.bundle)[0], [photos], {"top_k": 3}, r"\(top_k 5, now 3\)"),
        (watched(trained.bundle)[0], [photos], {"features": True}, r"\(features False, now True\)"),
        (watched(trained.bundle)[0], [photos, photos], {}, "sources"),
        (other, [photos], {}, r"\(another model_sha256\)"),
    ):
        with pytest.raises(InputError, match=message) as refusal:
            bulk(predictor, output, *sources, **options)
        assert str(refusal.value).startswith(f"{output}.partial: begun with other settings; run the same command, or")
    bulk(watched(trained.bundle)[0], output, photos)


def test_another_process_is_refused(photos: Path, trained: Trained, tmp_path: Path) -> None:
    output = tmp_path / "rows.jsonl"
    with BulkState(Path(f"{output}.partial")), pytest.raises(InputError, match="another process is working on it"):
        bulk(watched(trained.bundle)[0], output, photos)
    bulk(watched(trained.bundle)[0], output, photos)


@pytest.mark.parametrize("change", ["more", "less", "another"])
def test_images_that_changed_while_they_were_listed(
    change: str, photos: Path, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "rows.jsonl"
    monkeypatch.setattr(engine, "LISTED_AT_ONCE", 6)

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(BulkState, "end_listing", fail)
    with pytest.raises(ZeroDivisionError):
        bulk(watched(trained.bundle)[0], output, photos)
    monkeypatch.undo()
    if change == "more":  # after all others, so that nothing else moves
        shutil.copy(PHOTOS[0], photos / "Zzz.jpg")
        assert len(json_rows(bulk(watched(trained.bundle)[0], output, photos))) == 18
        return
    (photos / ("Zucchini.jpg" if change == "less" else "Anjou.jpg")).unlink()
    with pytest.raises(InputError, match=r"rows.jsonl.partial: the images have changed: .*; remove this file to start"):
        bulk(watched(trained.bundle)[0], output, photos)


def test_a_complete_list_is_not_read_again(photos: Path, trained: Trained, tmp_path: Path) -> None:
    """The names on stdin come once."""
    output, names = tmp_path / "rows.jsonl", tmp_path / "names"
    names.write_text("\n".join(map(str, PHOTOS)))
    with names.open() as stdin, pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdin", stdin)
        with pytest.raises(StoppedError):
            bulk(watched(trained.bundle, lambda _: os.kill(os.getpid(), signal.SIGTERM))[0], output, "-")
        rows = json_rows(bulk(watched(trained.bundle)[0], output, "-"))
    assert [row["name"] for row in rows] == list(map(str, PHOTOS))


def test_a_kill_between_the_last_steps(
    photos: Path, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the rows are written, and between their appearance and the removal of the state."""
    output = tmp_path / "rows.jsonl"
    whole = bulk(watched(trained.bundle)[0], tmp_path / "whole.jsonl", photos)

    class KilledError(BaseException):
        pass

    def die(*_: object) -> None:
        raise KilledError

    for target, name in ((module, "write_rows"), (BulkState, "remove")):
        monkeypatch.setattr(target, name, die)
        with pytest.raises(KilledError):
            bulk(watched(trained.bundle)[0], output, photos)
        assert output.exists() == (name == "remove")
        monkeypatch.undo()
    predictor, runtime = watched(trained.bundle)
    assert bulk(predictor, output, photos) == whole
    assert runtime.images == 0
    assert not Path(f"{output}.partial").exists()
    with pytest.raises(InputError, match="exists already"):
        bulk(predictor, output, photos)


def test_a_finished_file_is_not_mistaken_for_a_state(photos: Path, trained: Trained, tmp_path: Path) -> None:
    for content in (b"no database at all, but long enough", None):
        state = tmp_path / "rows.jsonl.partial"
        state.unlink(missing_ok=True)
        if content is None:
            with sqlite3.connect(state) as database:
                database.execute("CREATE TABLE mine (value)")
            database.close()
        else:
            state.write_bytes(content)
        before = state.read_bytes()
        with pytest.raises(InputError, match=r"rows\.jsonl\.partial: not a usable state"):
            bulk(watched(trained.bundle)[0], tmp_path / "rows.jsonl", photos)
        assert state.read_bytes() == before


def test_a_batch_is_the_readable_images_of_a_block(photos: Path, trained: Trained, tmp_path: Path) -> None:
    sizes: list[int] = []
    predictor, runtime = watched(trained.bundle)
    real = runtime.runtime.infer
    runtime.runtime.infer = lambda pixels: sizes.append(len(pixels)) or real(pixels)
    bulk(predictor, tmp_path / "rows.jsonl", photos)
    assert sizes == [3, 4, 3, 4, 1]  # of the blocks of four, two have a bad file
    sizes.clear()
    bulk(predictor, tmp_path / "rows.jsonl.2.jsonl", photos, part=Part(number=2, total=2))
    assert sizes == [4, 4]


@pytest.mark.slow
def test_kills_at_any_moment_change_nothing(nursery: Nursery, photos: Path, trained: Trained, tmp_path: Path) -> None:
    log, output = tmp_path / "log", tmp_path / "rows.parquet"
    words = ["predict", trained.bundle, *[photos] * 60, "--features", "--output"]
    nursery.start([*words, tmp_path / "whole.parquet"], log)
    assert nursery.wait(60) == 0, log.read_text()
    state, draw, done = Path(f"{output}.partial"), np.random.default_rng(5), [0]
    for kill in range(5):
        process = nursery.start([*words, output], log)
        if kill:  # the first is killed while it starts
            await_progress(state)
        assert nursery.wait(draw.uniform(0, 0.2)) is None, "the moment was too late"
        os.kill(process, signal.SIGKILL)
        assert nursery.wait(10) == -signal.SIGKILL
        done.append(forbid_repetition(state))
    assert done == sorted(done)
    assert len(set(done)) >= 3
    nursery.start([*words, output], log)
    assert nursery.wait(60) == 0, log.read_text()
    assert output.read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert not state.exists()


def await_progress(state: Path) -> None:
    """Waits until the process writes into its state."""
    log, deadline = Path(f"{state}-wal"), time.monotonic() + 30
    while not log.exists() or log.stat().st_size == 0:
        assert time.monotonic() < deadline
        time.sleep(0.005)
