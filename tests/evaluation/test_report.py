"""The reports: what the table says, and pictures that hold any number of classes and any name."""

from __future__ import annotations

import re
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.text import Text
from PIL import Image

from lipsformer.datasets import Split, open_labeled
from lipsformer.evaluation.predictions import Predictions
from lipsformer.evaluation.report import confusion, mistakes
from lipsformer.evaluation.report.classes_table import class_table
from lipsformer.evaluation.report.text import elide, fit, inches
from lipsformer.evaluation.report.write import write_report
from lipsformer.images.preprocessing import Pixels, Preprocessing
from lipsformer.images.samples import SAMPLES
from lipsformer.inference.heat_map import HeatMap
from lipsformer.system.errors import InputError
from lipsformer.train.listeners import curves as report
from lipsformer.train.metrics import EpochMetrics

PREPROCESSING = Preprocessing(image_size=32)
ODD_NAMES = ("$x^2$ _a_", "W" * 200, "果物", "back\\slash|pipe", "line\nbreak")


def answers(*pairs: tuple[int, int | None], classes: int = 3) -> Predictions:
    """Predictions of images by (true class, predicted class), each mistake worse than the last; None is unread."""
    logits = np.zeros((len(pairs), classes))
    for row, (_, said) in enumerate(pairs):
        logits[row, said or 0] = 1.0 + row
    return Predictions.of(logits, [true for true, _ in pairs], [said is not None for _, said in pairs])


def photos(root: Path, count: int, classes: Sequence[str]) -> Split:
    """`count` photos for each class."""
    found = sorted(SAMPLES.glob("*.jpg"))
    for name in classes:
        (root / name).mkdir(parents=True)
        for number in range(count):
            shutil.copy(found[number], root / name / f"{name}-{number}.jpg")
    return open_labeled(root, sorted(classes))


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """All texts of the figures that are saved."""
    found: list[str] = []

    def save(figure: Figure, path: Path) -> None:
        figure.savefig(path, dpi=50)
        found.extend(text.get_text() for text in figure.findobj(Text) if text.get_visible() and text.get_text())

    for module in (confusion, mistakes, report):
        monkeypatch.setattr(module, "save_figure", save)
    return found


def test_the_table_has_a_row_per_class_with_the_worst_first() -> None:
    predictions = answers((0, 0), (0, 0), (1, 0), (1, 1), (1, 2), (1, 2), (0, None))
    lines = class_table(predictions, ("cat", "dog", "fox"), "model on data").splitlines()
    assert lines[0] == "# model on data"
    assert lines[2].startswith("top-1 50.00%, top-5 100.00% on 6 images, loss ")
    assert lines[2].endswith("; 1 could not be read.")
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[4:]]
    assert cells[0] == ["class", "images", "accuracy", "precision", "F1", "most often taken for"]
    assert cells[2:] == [
        ["dog", "4", "25.0%", "100.0%", "40.0%", "fox (2)"],
        ["cat", "2", "100.0%", "66.7%", "80.0%", ""],
        ["fox", "0", "", "0.0%", "0.0%", ""],
    ]


def test_the_table_lines_up_and_shows_odd_names_as_they_are() -> None:
    names = (*ODD_NAMES, "plain", "*bold* [link](x) <b>")
    predictions = answers(*((k, (k + 1) % len(names)) for k in range(len(names))), classes=len(names))
    table = class_table(predictions, names, "a|b").split("\n\n")[-1].splitlines()
    assert len(table) == 2 + len(names)
    pipes = [[m.start() for m in re.finditer(r"(?<!\\)\|", line)] for line in table if line.isascii()]
    assert len(pipes[0]) == 7
    assert all(places == pipes[0] for places in pipes)
    text = "\n".join(table)
    assert r"back\\slash\|pipe" in text
    assert r"\*bold\* \[link\](x) \<b>" in text
    assert "line\N{REPLACEMENT CHARACTER}break" in text


def test_text_is_cut_to_the_room_it_has() -> None:
    font = FontProperties(size=9)
    assert fit("short", font, 1.0) == "short"
    for text in (*ODD_NAMES, "a long name of a photo 0001.jpg"):
        for room in (0.3, 1.0, 2.0):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                assert inches(fit(text, font, room), font) <= room
    cut = fit("a long name of a photo 0001.jpg", font, 1.0)
    assert cut.startswith("a l")
    assert cut.endswith(".jpg")
    assert elide("abcdefgh", 5) == "ab…gh"


def test_the_confusion_matrix_shows_counts_and_names(tmp_path: Path, texts: list[str]) -> None:
    predictions = answers(*[(0, 0)] * 41, (1, 0), (1, 1), (2, None))
    confusion.plot_confusion(tmp_path / "c.png", predictions, ("cat", "dog", "fox"), "model on data")
    assert texts.count("cat") == texts.count("dog") == 2  # along both sides
    assert {"41", "model on data\ntop-1 97.7% on 43 images"} <= set(texts)
    assert texts.count("1") == 2
    assert "Most frequent mistakes" not in texts


def test_very_many_classes_are_named_where_they_are_mistaken(tmp_path: Path, texts: list[str]) -> None:
    names = [f"kind {k}" for k in range(100)]
    predictions = answers(*[(7, 5)] * 3, (8, 9), *((k, k) for k in range(100)), classes=100)
    confusion.plot_confusion(tmp_path / "c.png", predictions, names, "title")
    assert [text for text in texts if "kind" in text] == ["kind 7", "→ kind 5", "kind 8", "→ kind 9"]


def half_taken_for_the_last(classes: int) -> Predictions:
    """Two images of each class: one is right, the other is taken for the last class."""
    labels = np.arange(2 * classes) % classes
    predicted = np.where(np.arange(len(labels)) < classes, labels, classes - 1)
    zeros = np.zeros(len(labels))
    return Predictions(labels=labels, predicted=predicted, rank=zeros, loss=zeros, confidence=zeros, classes=classes)


@pytest.mark.parametrize(("classes", "merged"), [(61, 1), (1000, 1), (1001, 5), (5003, 21), (21_841, 88)])
def test_neighboring_classes_share_a_cell_if_there_are_too_many(classes: int, merged: int) -> None:
    shares, found = confusion._shares(half_taken_for_the_last(classes).confusion(), classes)
    side = -(-classes // merged)
    assert (found, shares.shape) == (merged, (side, side))
    assert shares.sum(axis=1) == pytest.approx(1)
    assert np.diag(shares)[:-1] == pytest.approx(0.5)
    assert shares[:-1, -1] == pytest.approx(0.5)


def test_the_matrix_of_too_many_classes_says_what_a_cell_is(tmp_path: Path, texts: list[str]) -> None:
    names = [f"kind {k}" for k in range(2600)]
    confusion.plot_confusion(tmp_path / "c.png", half_taken_for_the_last(2600), names, "title")
    assert "predicted (number of the class; 11 in each cell)" in texts
    assert {"2500", "kind 24", "→ kind 2599"} <= set(texts)
    assert "kind 25" not in texts  # only the worst 25 pairs are named


def test_the_sheet_shows_the_worst_mistakes(tmp_path: Path, texts: list[str]) -> None:
    split = photos(tmp_path / "data", 2, ("cat", "dog"))
    predictions = answers((0, 0), (0, 1), (1, None), (1, 0), classes=2)
    mistakes.plot_mistakes(tmp_path / "m.png", predictions, split, ("cat", "dog"), PREPROCESSING, "model on data")
    assert texts[0] == "All 2 mistakes, worst first"
    assert texts[1].startswith("model on data: top-1 33.3% on 3 images.")
    assert texts[2:] == ["dog", "→ cat  98%", "dog-1.jpg", "cat", "→ dog  88%", "cat-1.jpg"]


def test_the_photos_are_those_that_the_network_sees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split, drawn = photos(tmp_path / "data", 2, ("cat", "dog")), []
    monkeypatch.setattr("matplotlib.axes.Axes.imshow", lambda _, pixels: drawn.append(pixels))
    predictions = answers((0, 0), (0, 0), (1, 1), (1, 0), classes=2)
    mistakes.plot_mistakes(tmp_path / "m.png", predictions, split, ("cat", "dog"), PREPROCESSING, "title")
    assert len(drawn) == 1
    assert (drawn[0] == PREPROCESSING.apply(split.open(3))).all()


def test_heat_maps_are_next_to_the_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, texts: list[str]) -> None:
    class Spotlight:
        """The token of the class's own number spoke for it."""

        stage = 4

        def explain(self, pixels: Pixels, index: int) -> HeatMap:
            found = np.zeros((2, 2), np.float32)
            found.flat[index] = 1.0
            return HeatMap(contributions=found, index=index, logit=1.0, bias=0.0, stage=4)

    split, drawn = photos(tmp_path / "data", 2, ("cat", "dog")), list[np.ndarray]()
    monkeypatch.setattr("matplotlib.axes.Axes.imshow", lambda _, pixels: drawn.append(pixels))
    (tmp_path / "data" / "cat" / "cat-0.jpg").unlink()
    predictions = answers((0, 1), (0, 0), (1, 1), (1, 0), classes=2)
    mistakes.plot_mistakes(
        tmp_path / "m.png", predictions, split, ("cat", "dog"), PREPROCESSING, "title", explainer=Spotlight()
    )
    photo, drawing = drawn  # the other mistake can no longer be read
    assert (photo == PREPROCESSING.apply(split.open(3))).all()
    red, blue = (drawing[..., channel].astype(int) for channel in (0, 2))
    warmth = red - blue
    assert warmth[:16, :16].mean() > 2 * warmth[16:, 16:].mean() + 50  # the predicted class is the first
    assert "All 2 mistakes, worst first. Orange spoke for them, blue against" in texts


def test_a_sheet_without_mistakes_says_so(tmp_path: Path, texts: list[str]) -> None:
    split = photos(tmp_path / "data", 1, ("cat", "dog"))
    mistakes.plot_mistakes(
        tmp_path / "m.png", answers((0, 0), (1, 1), classes=2), split, ("cat", "dog"), PREPROCESSING, "title"
    )
    assert texts[0] == "No mistakes"
    assert texts[2] == "Every image was classified correctly."


def test_a_photo_that_has_gone_leaves_a_blank(tmp_path: Path, texts: list[str]) -> None:
    split = photos(tmp_path / "data", 1, ("cat", "dog"))
    (tmp_path / "data" / "cat" / "cat-0.jpg").unlink()
    mistakes.plot_mistakes(
        tmp_path / "m.png", answers((0, 1), (1, 1), classes=2), split, ("cat", "dog"), PREPROCESSING, "title"
    )
    assert {"The only mistake", "cannot be read now", "cat-0.jpg"} <= set(texts)


@pytest.mark.parametrize("names", [("a", "b"), ODD_NAMES, tuple(f"class {k:03}" for k in range(70))])
def test_reports_of_any_classes_are_written(tmp_path: Path, names: tuple[str, ...]) -> None:
    split = photos(tmp_path / "data", 1, [f"{k:03}" for k in range(len(names))])
    predictions = answers(*((k, 0) for k in range(len(names))), classes=len(names))
    write_report(tmp_path / "report", predictions, split, names, PREPROCESSING, "$ title_" * 40)
    assert {path.name for path in (tmp_path / "report").iterdir()} == {"classes.md", "confusion.png", "mistakes.png"}
    for name in ("confusion.png", "mistakes.png"):
        with Image.open(tmp_path / "report" / name) as image:
            assert 500 < image.width < 3000
            assert np.asarray(image.convert("L"))[:, -3:].min() > 200  # nothing runs out at the right


def test_a_report_that_cannot_be_written_names_its_place(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    split = photos(tmp_path / "data", 1, ("cat", "dog"))
    with pytest.raises(InputError, match=r"classes\.md: cannot be written"):
        write_report(tmp_path / "file", answers((0, 0), (1, 1)), split, ("cat", "dog"), PREPROCESSING, "title")


def record(epoch: int, **changes: Any) -> EpochMetrics:
    values = {"epoch": epoch, "step": epoch, "learning_rate": 1e-3, "train_loss": 1.0, "train_top1": 0.5,
              "train_loss_curve": [1.0], "skipped_steps": 0, "images_per_second": 1.0, "data_wait": 0.0,
              "val_loss": 1.0, "val_top1": 0.5, "val_top5": 1.0, "val_images": 1, "seconds": 1.0}  # fmt: skip
    return EpochMetrics(**(values | changes))


def test_curves_tell_the_last_and_the_best_epoch(tmp_path: Path, texts: list[str]) -> None:
    history = [record(1, train_loss=None), record(2, val_top1=0.75), record(3, val_loss=None)]
    report.plot_curves(tmp_path / "c.png", history, "model on $data")
    assert "model on $data: top-1 50.0% after epoch 3, best 75.0% after epoch 2" in texts
    assert "Learning rate" in texts


def test_curves_show_skipped_steps_where_there_are_some(tmp_path: Path, texts: list[str]) -> None:
    report.plot_curves(tmp_path / "c.png", [record(1, skipped_steps=0), record(2, skipped_steps=3)], "title")
    assert "Learning rate, and steps skipped (bars, right)" in texts
    report.plot_curves(tmp_path / "c.png", [record(1)], "t" * 500)
    assert "Learning rate" in texts
