"""Images sorted into folders by class: links or copies, and no file is overwritten."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from lipsformer import load_predictor
from lipsformer.images.samples import SAMPLES
from lipsformer.inference.bulk import copies
from lipsformer.system import console
from lipsformer.system.errors import InputError
from tests.support.bulk import bulk, json_rows
from tests.support.shards import write_shard
from tests.support.trained import Trained

PHOTOS = sorted(SAMPLES.glob("*.jpg"))


def found(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("links", [True, False])
def test_each_image_goes_to_its_class(
    links: bool,
    trained: Trained,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(console, "PLAIN_INTERVAL_SECONDS", 0.0)
    if not links:

        def refuse(*_: Any) -> None:
            raise OSError(errno.EXDEV, "another file system")

        monkeypatch.setattr(os, "link", refuse)
    photos, output = tmp_path / "photos", tmp_path / "rows.jsonl"
    photos.mkdir()
    for photo in PHOTOS[:4]:
        shutil.copy(photo, photos)
    (photos / "text.jpg").write_text("hello")
    (photos / "linked.jpg").symlink_to(photos / PHOTOS[0].name)
    (photos / "broken.jpg").symlink_to("nowhere")
    write_shard(tmp_path / "more.tar", {f"x/{PHOTOS[0].name}": PHOTOS[1].read_bytes(), "y/z": b"?"})
    predictor = load_predictor(trained.bundle)
    sources = (photos, tmp_path / "more.tar")
    rows = json_rows(bulk(predictor, output, *sources, copy_to=tmp_path / "sorted"))
    labels = {Path(row["name"]).name: row["label"] for row in rows[:-1]}
    expected = {f"{labels[path.name]}/{path.name}": path.read_bytes() for path in photos.iterdir() if path.exists()}
    expected["_refused/not_an_image/text.jpg"] = expected.pop("None/text.jpg")
    packed = f"{rows[-1]['label']}/{PHOTOS[0].name}"
    expected[packed if packed not in expected else packed.replace(".jpg", "-7.jpg")] = PHOTOS[1].read_bytes()
    assert found(tmp_path / "sorted") == expected
    assert f"copy to {tmp_path / 'sorted'}: 7/8" in capsys.readouterr().err
    linked = tmp_path / "sorted" / labels[PHOTOS[2].name] / PHOTOS[2].name
    assert linked.samefile(photos / PHOTOS[2].name) == links
    bulk(predictor, tmp_path / "again.jsonl", *sources, copy_to=tmp_path / "sorted")  # nothing is there twice
    assert found(tmp_path / "sorted") == expected


def test_nothing_is_overwritten(trained: Trained, tmp_path: Path) -> None:
    for name, photo in (("a", PHOTOS[0]), ("b", PHOTOS[0]), ("c", PHOTOS[0])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.jpg").write_bytes(photo.read_bytes() + name.encode())  # the same picture
    predictor = load_predictor(trained.bundle)
    sources = [tmp_path / name for name in "abc"]
    (row, *_) = json_rows(bulk(predictor, tmp_path / "rows.jsonl", *sources, copy_to=tmp_path / "sorted"))
    folder = tmp_path / "sorted" / row["label"]
    assert {path.name: path.read_bytes()[-1:] for path in folder.iterdir()} == {
        "1.jpg": b"a", "1-1.jpg": b"b", "1-2.jpg": b"c"
    }  # fmt: skip
    (folder / "1-2.jpg").unlink()
    (folder / "1-2.jpg").write_text("the user's")
    with pytest.raises(InputError, match=r"1-2.jpg: another file is there already; choose another --copy-to folder"):
        bulk(predictor, tmp_path / "more.jsonl", *sources, copy_to=tmp_path / "sorted")
    assert (folder / "1-2.jpg").read_text() == "the user's"
    assert not (tmp_path / "more.jsonl").exists()


@pytest.mark.parametrize(
    ("label", "folder"),
    [
        ("Kaiser", "Kaiser"), ("red apple", "red apple"), ("../../etc", "%2E./..%2F".replace("/", "%2F")[:-3] + "etc"),
        ("a/b", "a%2Fb"), ("a%2Fb", "a%252Fb"), ("..", "%2E."), (".", "%2E"), ("", "%"), ("_refused", "%5Frefused"),
        ("nul\0", "nul%00"), ("x" * 300, "x" * 200),
    ],
)  # fmt: skip
def test_a_label_is_one_folder(label: str, folder: str) -> None:
    if label == "../../etc":
        folder = "%2E.%2F..%2Fetc"
    assert copies._safe(label) == folder
