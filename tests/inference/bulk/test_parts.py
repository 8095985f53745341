"""Parts of a bulk prediction: merged they are the whole, byte for byte, and nothing else can be merged."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lipsformer.images.samples import SAMPLES
from lipsformer.inference.bulk import Part, merge_parts
from lipsformer.inference.bulk.bulk import _share
from lipsformer.inference.bulk.state import BulkState
from lipsformer.system.errors import InputError
from tests.support.bulk import bulk, watched
from tests.support.command import Run
from tests.support.trained import Trained


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    shutil.copytree(SAMPLES, tmp_path / "photos", ignore=shutil.ignore_patterns("*.py", "LICENSE"))
    (tmp_path / "photos" / "Anjou-2.jpg").touch()
    return tmp_path / "photos"


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_merged_parts_are_the_whole(ending: str, photos: Path, trained: Trained, tmp_path: Path) -> None:
    whole = bulk(watched(trained.bundle)[0], tmp_path / f"whole.{ending}", photos, photos, "none.jpg", features=True)
    output, computed = tmp_path / f"rows.{ending}", 0
    for number in (2, 3, 1):
        predictor, runtime = watched(trained.bundle)
        part = Part(number=number, total=3)
        assert bulk(predictor, output, photos, photos, "none.jpg", features=True, part=part) == b""
        computed += runtime.images
    assert computed == 28
    parts = sorted(tmp_path.glob("rows.*.part-*"))
    assert [path.name for path in parts] == [f"rows.{ending}.part-{number}-of-3" for number in (1, 2, 3)]
    merge_parts(str(output), parts)
    assert output.read_bytes() == whole
    assert len(parts) == 3
    predictor, runtime = watched(trained.bundle)
    bulk(predictor, tmp_path / "again.jsonl", photos, part=Part(number=1, total=3))
    first = runtime.images
    bulk(predictor, tmp_path / "again.jsonl", photos, part=Part(number=1, total=3))  # it is done
    assert runtime.images == first


def test_the_command_merges(photos: Path, trained: Trained, tmp_path: Path, run: Run) -> None:
    output = tmp_path / "rows.csv"
    for number in (1, 2):
        status, _, err = run("predict", trained.bundle, photos, "--output", output, "--part", f"{number}/2")
        assert status == 0
        assert f"rows.csv.part-{number}-of-2: " in err
    parts = [tmp_path / f"rows.csv.part-{number}-of-2" for number in (2, 1)]
    status, out, err = run("predict", "--merge", output, *parts)
    assert (status, out, err) == (0, "", f"{output}: 15 images: 14 ok, 1 empty\n")
    assert len(output.read_text().splitlines()) == 16
    status, _, err = run("predict", "--merge", output, *parts)
    assert (status, err) == (2, f"lipsformer: {output}: exists already; choose another OUT or remove it first\n")


def test_only_the_parts_of_one_prediction_are_merged(photos: Path, trained: Trained, tmp_path: Path) -> None:
    predictor, _ = watched(trained.bundle)
    made = {}
    for name, number, total, sources, top_k in (
        ("a", 1, 2, [photos], 5), ("a", 2, 2, [photos], 5), ("b", 2, 2, [photos], 3), ("c", 2, 2, [photos, photos], 5),
        ("d", 3, 3, [photos], 5),
    ):  # fmt: skip
        bulk(predictor, tmp_path / f"{name}.csv", *sources, part=Part(number=number, total=total), top_k=top_k)
        made[f"{name}{number}"] = tmp_path / f"{name}.csv.part-{number}-of-{total}"
    (tmp_path / "new.jpg").symlink_to(photos / "Anjou.jpg")
    shutil.move(tmp_path / "new.jpg", photos / "new.jpg")
    bulk(predictor, tmp_path / "e.csv", photos, part=Part(number=2, total=2))
    made["e2"] = tmp_path / "e.csv.part-2-of-2"
    (tmp_path / "text").write_text("no state at all, but a file of some length")
    with BulkState(tmp_path / "begun"):
        pass
    for names, message in (
        ([made["a1"], tmp_path / "begun"], "begun: not finished; run its command again first"),
        ([made["a1"]], r"out.csv: part 2/2 is missing \(1 of 2 are\); give all parts"),
        ([made["a1"], made["a1"]], r"out.csv: part 2/2 is missing \(1 of 2 are\); give all parts"),
        ([made["a1"], made["b2"]], r"b.csv.part-2-of-2: of another prediction than .*\(top_k 5, now 5|top_k 3, now 5"),
        ([made["a1"], made["c2"]], r"c.csv.part-2-of-2: of another prediction than .*another sources"),
        ([made["a1"], made["d3"]], r"d.csv.part-3-of-3: of another prediction than .*3 parts, now 2"),
        ([made["a1"], made["e2"]], r"e.csv.part-2-of-2: of another prediction than .*another list of images"),
        ([made["a1"], tmp_path / "none"], "none: no such part"),
        ([made["a1"], tmp_path / "text"], "text: not a usable state"),
    ):
        with pytest.raises(InputError, match=message):
            merge_parts(str(tmp_path / "out.csv"), names)
    shutil.copy(made["a1"], tmp_path / "copy")
    with pytest.raises(InputError, match=r"part 1/2, as .* is; give each part once"):
        merge_parts(str(tmp_path / "out.csv"), [made["a1"], tmp_path / "copy"])
    assert not (tmp_path / "out.csv").exists()
    merge_parts(str(tmp_path / "out.csv"), [made["a2"], made["a1"]])


@pytest.mark.parametrize("total", [0, 1, 4, 5, 11, 12, 13, 100])
def test_the_share_of_a_part(total: int) -> None:
    for parts in (1, 2, 3, 7):
        for number in range(1, parts + 1):
            part = Part(number=number, total=parts)
            assert _share(total, part, 4) == sum(part.has(position // 4) for position in range(total))
    assert _share(None, Part(), 4) is None
