"""`Predictor.stream`: the answers of any sources, one after the other, and what cannot be used is named."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lipsformer import load_predictor
from lipsformer.images.samples import SAMPLES
from lipsformer.inference.predictor import Predictor
from lipsformer.system.errors import InputError
from tests.support.bulk import watched
from tests.support.shards import write_shard
from tests.support.trained import Trained

GOOD = sorted(SAMPLES.glob("*.jpg"))


@pytest.fixture(scope="module")
def predictor(trained: Trained) -> Predictor:
    return load_predictor(trained.bundle, threads=1)


@pytest.fixture(scope="module")
def best(predictor: Predictor) -> dict[Path, str]:
    """The label of each photo, predicted alone."""
    alone = dataclasses.replace(predictor, max_batch=1)
    return {photo: answer[0].label for photo, answer in zip(GOOD, alone.predict(GOOD, 1), strict=True)}


@pytest.mark.parametrize("pattern", ["b", "mg", "ggb", "bmgbb", "gbgmgbg", "bbbbggg"])
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_each_image_gets_its_own_answer_in_any_batch(
    pattern: str, batch: int, predictor: Predictor, best: dict[Path, str], tmp_path: Path
) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"damaged")
    others = {"b": tmp_path / "bad.jpg", "m": tmp_path / "missing.jpg"}
    images = [others.get(kind, photo) for kind, photo in zip(pattern, GOOD, strict=False)]
    found = list(predictor.stream(images, 1, batch=batch))
    assert [name for name, _ in found] == list(map(str, images))
    for kind, photo, (name, answer) in zip(pattern, GOOD, found, strict=False):
        if isinstance(answer, InputError):
            reason = {"b": "not an image of a known format", "m": "no such image file; check the path"}[kind]
            assert str(answer).startswith(f"{name}: {reason}")
        else:
            assert (kind, answer[0].label) == ("g", best[photo])
    with pytest.raises(InputError, match=r"not an image|no such image file"):
        predictor.predict(images)


def test_a_source_is_whatever_the_command_takes(predictor: Predictor, best: dict[Path, str], tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", {"x.jpg": GOOD[3].read_bytes()})
    for source in (SAMPLES, str(SAMPLES), f"{SAMPLES}/*.jpg"):
        assert {name: answer[0].label for name, answer in predictor.stream(source)} == {
            str(photo): label for photo, label in best.items()
        }
    ((name, answer),) = predictor.stream([tmp_path / "a.tar"])
    assert (name, answer[0].label) == (f"{tmp_path}/a.tar:x.jpg", best[GOOD[3]])


def test_answers_of_endless_sources_come_at_once(trained: Trained) -> None:
    predictor, runtime = watched(trained.bundle)
    asked: list[Path] = []

    def endless() -> Iterator[Path]:
        for photo in itertools.cycle(GOOD):
            asked.append(photo)
            yield photo

    for count, _ in enumerate(itertools.islice(predictor.stream(endless()), 3), 1):
        assert len(asked) == runtime.batches == count


def test_nothing_is_no_batch_and_no_answer(predictor: Predictor) -> None:
    for words, message in (({"batch": 0}, "batch=0: at least 1"), ({"top_k": 0}, "top_k=0: at least 1")):
        with pytest.raises(InputError, match=message):
            next(predictor.stream(SAMPLES, **words))


def test_an_image_that_cannot_be_converted_is_named(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise InputError("image of mode X cannot be converted")

    monkeypatch.setattr("lipsformer.images.preprocessing.to_8bit", fail)
    ((_, problem),) = predictor.stream(GOOD[0])
    assert str(problem).startswith(f"{GOOD[0]}: image of mode X")
    for image, message in ((GOOD[0], f"{GOOD[0]}: image of"), (Image.new("RGB", (9, 9)), "image of mode X")):
        with pytest.raises(InputError) as refusal:
            predictor.predict([image])
        assert str(refusal.value).startswith(message)
