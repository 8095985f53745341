"""What `train` refuses, in which words: one line that names the file or key and says what to do."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from training import make_photos, train_tiny

from lipsformer import InputError


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return make_photos(tmp_path / "photos")


def refusal(data: Path, output: Path, *overrides: str, **options: object) -> str:
    """The message that a training is refused with."""
    with pytest.raises(InputError) as caught:
        train_tiny(data, output, *overrides, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_missing_folder(tmp_path: Path) -> None:
    assert "no such folder" in refusal(tmp_path / "none", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_one_class(photos: Path, tmp_path: Path) -> None:
    shutil.rmtree(photos / "train" / "Orange")
    shutil.rmtree(photos / "train" / "Red-Delicious")
    assert "1 class folders, at least 2 are needed" in refusal(photos, tmp_path / "run")


def test_empty_class_folder(photos: Path, tmp_path: Path) -> None:
    for photo in (photos / "train" / "Orange").iterdir():
        photo.unlink()
    assert f"{photos / 'train' / 'Orange'}: holds no images" in refusal(photos, tmp_path / "run")


def test_class_only_in_validation(photos: Path, tmp_path: Path) -> None:
    (photos / "val" / "Orange").rename(photos / "val" / "Lemon")
    assert "class 'Lemon' is unknown" in refusal(photos, tmp_path / "run")


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("workers", [0, 2])
def test_corrupt_image(photos: Path, tmp_path: Path, split: str, workers: int) -> None:
    photo = photos / split / "Orange" / "0.jpg"
    photo.write_bytes(photo.read_bytes()[:2000])
    message = refusal(photos, tmp_path / "run", f"workers={workers}")
    assert message.startswith(f"{photo}: damaged or cut off")
    assert message.endswith("or remove it")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("learning_rte=1e-3", "unknown recipe key 'learning_rte': did you mean 'learning_rate'?"),
        ("model.window=4", "unknown model setting 'window': did you mean 'window_size'?"),
        ("optimiser.rate=4", "unknown key 'optimiser.rate'"),
        ("model.name=lipsformer_swin_tinny", "did you mean 'lipsformer_swin_tiny'?"),
        ("batch_size=2.5", "batch_size=2.5: a whole number is needed"),
        ("batch_size=true", "batch_size=true: a whole number is needed"),
        ("learning_rate=fast", 'learning_rate="fast": a number is needed'),
        ("learning_rate=inf", "a number is needed"),
        ("learning_rate=-1", "learning_rate=-1: it must be above 0"),
        ("crop_scale=[0.9, 0.1]", "crop_scale=[0.9, 0.1]: it must be rising"),
        ("crop_scale=0.5", "crop_scale=0.5: two numbers"),
        ("model=4", "model=4: it is a table"),
        ("model.num_classes=4", "the class folders decide it"),
        ("model.image_size=33", "image_size=33 cannot be tiled"),
        ("model.drop_path=high", "drop_path='high': a number from 0 to 0.99 is needed"),
        ("model.depths=4", "depths=4: 4 whole numbers"),
        ("learning_rate", "give it as key=value"),
    ],
)
def test_bad_override(photos: Path, tmp_path: Path, override: str, message: str) -> None:
    assert message in refusal(photos, tmp_path / "run", override)
    assert not (tmp_path / "run").exists()


def test_unknown_model_recipe_and_device(photos: Path, tmp_path: Path) -> None:
    assert "did you mean 'lipsformer_nano'?" in refusal(photos, tmp_path / "run", model="lipsformer_nan")
    assert "unknown recipe 'fruits': did you mean 'fruit'?" in refusal(photos, tmp_path / "run", recipe="fruits")
    assert "no such recipe" in refusal(photos, tmp_path / "run", recipe="mine.toml")
    assert "one of auto, cpu, cuda" in refusal(photos, tmp_path / "run", device="tpu")


def test_recipe_file_that_is_not_toml(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("epochs: 3")
    assert "mine.toml: not a TOML file" in refusal(photos, tmp_path / "run", recipe=str(tmp_path / "mine.toml"))


def test_existing_output(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("five years of work")
    assert "exists already; add --resume" in refusal(photos, tmp_path / "run")
    assert "nothing to resume" in refusal(photos, tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "thesis.txt").read_text() == "five years of work"
    assert "not a folder" in refusal(photos, tmp_path / "run" / "thesis.txt")


def test_resume_as_another_run(photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train_tiny(photos, run, epochs=1)
    before = (run / "state.safetensors").read_bytes()
    message = refusal(photos, run, "learning_rate=5e-3", epochs=1, resume=True)
    assert "another recipe (learning_rate was 0.001, is 0.005)" in message
    assert "epochs was 1, is 2" in refusal(photos, run, epochs=2, resume=True)
    (photos / "train" / "Orange" / "0.jpg").rename(photos / "train" / "Orange" / "9.jpg")
    assert "another dataset" in refusal(photos, run, epochs=1, resume=True)
    assert (run / "state.safetensors").read_bytes() == before


def test_state_that_cannot_be_read(photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train_tiny(photos, run, epochs=1)
    state = run / "state.safetensors"
    whole = state.read_bytes()
    state.write_bytes(whole[: len(whole) // 2])
    assert f"{state}: not a readable state" in refusal(photos, run, epochs=1, resume=True)
    shutil.copy(run / "last.safetensors", state)
    assert f"{state}: not a training state" in refusal(photos, run, epochs=1, resume=True)


def test_output_that_cannot_be_written(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lipsformer.train import run

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run, "save_state", full)
    assert "run: cannot be written" in refusal(photos, tmp_path / "run")
