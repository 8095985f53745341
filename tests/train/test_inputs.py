"""What `train` refuses, in which words: one line that names the file or key and says what to do."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from lipsformer import InputError, load_checkpoint
from lipsformer.system.errors import LipsFormerError
from lipsformer.train import run_lr_range_test, run_training
from tests.support.tiny_training import blank_plots, contents, make_photos, one_thread, states, train_tiny


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return make_photos(tmp_path / "photos")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a finished training, next to its photos."""
    root = tmp_path_factory.mktemp("finished")
    train_tiny(make_photos(root / "photos"), root / "run", epochs=3)
    return root / "run"


def refusal(data: Path, output: Path, *overrides: str, **options: object) -> str:
    """The message that a training is refused with."""
    with pytest.raises(InputError) as caught:
        train_tiny(data, output, *overrides, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_bad_model_is_refused_before_any_data_is_read(tmp_path: Path) -> None:
    nowhere = tmp_path / "none"
    for override in ("model.name=lipsformer_nan", "model.window=4", "model.name=none.safetensors", "learning_rate=-1"):
        assert "no such folder" not in refusal(nowhere, tmp_path / "run", override)


def test_missing_folder(tmp_path: Path) -> None:
    assert "no such folder" in refusal(tmp_path / "none", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_one_class(photos: Path, tmp_path: Path) -> None:
    shutil.rmtree(photos / "train" / "Orange")
    shutil.rmtree(photos / "train" / "Red-Delicious")
    assert "1 class found, at least 2 are needed" in refusal(photos, tmp_path / "run")


def test_empty_class_folder(photos: Path, tmp_path: Path) -> None:
    for photo in (photos / "train" / "Orange").iterdir():
        photo.unlink()
    assert f"{photos / 'train' / 'Orange'}: no images" in refusal(photos, tmp_path / "run")


def test_class_only_in_validation(photos: Path, tmp_path: Path) -> None:
    (photos / "val" / "Orange").rename(photos / "val" / "Lemon")
    assert "unknown class 'Lemon'" in refusal(photos, tmp_path / "run")


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("workers", [0, 2])
def test_corrupt_image_is_left_out_and_listed(
    photos: Path, tmp_path: Path, split: str, workers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = photos / split / "Orange" / "0.jpg"
    photo.write_bytes(photo.read_bytes()[:2000])
    lost = pytest.raises(LipsFormerError, match=r"val: no image can be read of 1 of 3 classes \('Orange'\)")
    with lost if split == "val" else contextlib.nullcontext():
        train_tiny(photos, tmp_path / "run", f"workers={workers}", epochs=2)
    listed = (tmp_path / "run" / "unreadable.txt").read_text().splitlines()
    assert len(listed) == 1
    assert listed[0].startswith(f"{photo}: damaged or cut off")
    err = capsys.readouterr().err
    assert err.count("it is left out, as others will be: unreadable.txt lists them") == 1
    assert "1 images unreadable" in err
    checkpoint = load_checkpoint(tmp_path / "run" / "last.safetensors")
    assert checkpoint.metrics["images"] == (2 if split == "val" else 3)


@pytest.mark.parametrize("damage", [b"", b"<html>", b"\xff\xd8\xff\xe0 cut"])
def test_a_class_without_a_readable_image_is_a_failure(
    photos: Path, tmp_path: Path, damage: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    for photo in (photos / "train" / "Orange").iterdir():
        photo.write_bytes(damage)
    with pytest.raises(LipsFormerError, match="train: no image can be read of 1 of 3 classes") as failure:
        train_tiny(photos, tmp_path / "run", epochs=1)
    assert failure.value.exit_code == 1
    assert capsys.readouterr().err.count("train: no image can be read of 1 of 3 classes") == 1
    assert load_checkpoint(tmp_path / "run" / "last.safetensors").metrics["epoch"] == 1
    for photo in (photos / "train" / "Orange").iterdir():
        photo.write_bytes((photos / "val" / "Orange" / "0.jpg").read_bytes())
    train_tiny(photos, tmp_path / "other", epochs=1)  # repaired


@pytest.mark.parametrize("place", ["run", "train/Orange/run", "."])
def test_an_output_inside_of_the_dataset_is_refused(photos: Path, tmp_path: Path, place: str) -> None:
    before = sorted(photos.rglob("*"))
    (tmp_path / "link").symlink_to(photos)
    for output in (photos / place, tmp_path / "link" / place):
        assert f"--output {output}: inside of the input {photos}" in refusal(photos, output)
        with pytest.raises(InputError, match="inside of the input"):
            run_lr_range_test(photos, output=output)
    assert sorted(photos.rglob("*")) == before


@pytest.mark.parametrize("split", ["train", "val"])
def test_nothing_but_corrupt_images(photos: Path, tmp_path: Path, split: str) -> None:
    for photo in (photos / split).rglob("*.jpg"):
        photo.write_bytes(photo.read_bytes()[:2000])
    message = refusal(photos, tmp_path / "run")
    assert ("12 images in a row cannot be read" if split == "train" else "none of the images to validate on") in message


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("learning_rte=1e-3", "unknown recipe key 'learning_rte': did you mean 'learning_rate'?"),
        ("model.window=4", "unknown model setting 'window': did you mean 'window_size'?"),
        ("optimizer.rate=4", "unknown key 'optimizer.rate'"),
        ("model.name=lipsformer_swin_tinny", "did you mean 'lipsformer_swin_tiny'?"),
        ("batch_size=2.5", "batch_size=2.5: a whole number is needed"),
        ("batch_size=true", "batch_size=true: a whole number is needed"),
        ("learning_rate=fast", 'learning_rate="fast": a number is needed'),
        ("learning_rate=inf", "a finite number is needed"),
        ("learning_rate=-1", "learning_rate=-1: it must be above 0"),
        ("crop_scale=[0.9, 0.1]", "crop_scale=[0.9, 0.1]: the first number must not be above the second"),
        ("crop_scale=0.5", "crop_scale=0.5: a list is needed"),
        ("crop_scale=[0.5]", "crop_scale=[0.5]: 2 or more entries are needed"),
        ("betas=[0.9, 1]", "betas[1]=1: it must be below 1"),
        ("optimizer=sgd", "optimizer=\"sgd\": use 'adamw', 'adamw2' or 'muon'"),
        ("compile=1", "compile=1: true or false is needed"),
        ("workers='1'", 'workers="1": a whole number is needed'),
        ("model=4", "model=4: it is a table"),
        ("model.num_classes=4", "the class folders decide it"),
        ("model.image_size=33", "image_size=33 cannot be tiled"),
        ("model.drop_path=high", "drop_path='high': a number from 0 to 0.99 is needed"),
        ("model.depths=4", "depths=4: 1 to 4 whole numbers"),
        ("learning_rate", "write it as key=value"),
    ],
)
def test_bad_override(photos: Path, tmp_path: Path, override: str, message: str) -> None:
    assert message in refusal(photos, tmp_path / "run", override)
    assert not (tmp_path / "run").exists()


def test_unknown_model_recipe_and_device(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"did you mean 'lipsformer_nano'\?"):
        run_training(photos, output=tmp_path / "run", model="lipsformer_nan")
    assert "unknown recipe 'fruits': did you mean 'fruit'?" in refusal(photos, tmp_path / "run", recipe="fruits")
    assert "no such recipe" in refusal(photos, tmp_path / "run", recipe="mine.toml")
    assert "one of auto, cpu, cuda" in refusal(photos, tmp_path / "run", device="tpu")


def test_recipe_file_that_is_not_toml(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("epochs: 3")
    assert "mine.toml: not a TOML file" in refusal(photos, tmp_path / "run", recipe=str(tmp_path / "mine.toml"))


def test_existing_output(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("five years of work")
    assert "exists already; use --resume auto" in refusal(photos, tmp_path / "run", resume=False)
    assert "no training to resume" in refusal(photos, tmp_path / "run")
    assert (tmp_path / "run" / "thesis.txt").read_text() == "five years of work"
    assert "not a folder" in refusal(photos, tmp_path / "run" / "thesis.txt")


def test_resume_as_another_run(finished: Path, tmp_path: Path) -> None:
    photos = shutil.copytree(finished.with_name("photos"), tmp_path / "photos")
    run = shutil.copytree(finished, tmp_path / "run")
    before = [path.read_bytes() for path in states(run)]
    message = refusal(photos, run, "learning_rate=5e-3", epochs=3)
    assert "another recipe (learning_rate was 0.001, is 0.005)" in message
    assert "epochs was 3, is 2" in refusal(photos, run, epochs=2)
    (photos / "train" / "Orange" / "0.jpg").rename(photos / "train" / "Orange" / "9.jpg")
    assert "another dataset" in refusal(photos, run, epochs=3)
    assert [path.read_bytes() for path in states(run)] == before


@pytest.mark.parametrize("changes", [{"epochs": 5}, {"overrides": ["seed=3"]}, {"overrides": ["weight_decay=0.1"]}])
def test_a_run_that_cannot_be_resumed_says_how_to_train_further(
    finished: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    run, photos = shutil.copytree(finished, tmp_path / "run"), finished.with_name("photos")
    again = {"epochs": 3, "overrides": [], **changes}
    message = refusal(photos, run, *again["overrides"], epochs=again["epochs"])
    assert message.endswith(f"; there, --model {run / 'last.safetensors'} starts from the weights of this run")
    with one_thread(), blank_plots():
        best = run_training(
            photos,
            output=tmp_path / "further",
            model=str(run / "last.safetensors"),
            recipe=str(run / "recipe.toml"),
            epochs=1,
        )
    assert load_checkpoint(best).config == load_checkpoint(run / "last.safetensors").config
    (run / "last.safetensors").unlink()  # as in the first epoch
    assert "--model" not in refusal(photos, run, *again["overrides"], epochs=again["epochs"])


def spoil(path: Path, how: str) -> None:
    whole = path.read_bytes()
    if how == "cut off":
        path.write_bytes(whole[: len(whole) // 2])
    elif how == "one bit":
        path.write_bytes(whole[:-1000] + bytes([whole[-1000] ^ 1]) + whole[-999:])
    elif how == "history":  # in the metadata: the hash covers it too
        assert b"val_top1" in whole
        path.write_bytes(whole.replace(b"val_top1", b"val_top7", 1))
    elif how == "foreign":
        shutil.copy(path.parent / "last.safetensors", path)
    else:
        path.write_bytes(b"")


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("cut off", "not a readable state"),
        ("one bit", "damaged, its content does not have the hash"),
        ("history", "damaged, its content does not have the hash"),
        ("foreign", "not a training state"),
        ("empty", "not a readable state"),
    ],
)
def test_an_unusable_state_is_reported_and_the_one_before_used(
    finished: Path, tmp_path: Path, how: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = finished.with_name("photos")
    run = shutil.copytree(finished, tmp_path / "run")
    whole = contents(run)
    newest = states(run)[-1]
    spoil(newest, how)
    train_tiny(photos, run, epochs=3)
    err = capsys.readouterr().err
    assert f"{newest}: {reason}" in err
    assert "using the state before it" in err
    assert "resumed at step 6 of 9" in err
    again = contents(run)
    assert again[1] == whole[1]
    assert all(torch.equal(again[0][name], whole[0][name]) for name in whole[0])
    for path in states(run):
        spoil(path, how)
    message = refusal(photos, run, epochs=3)
    assert reason in message
    assert "no usable state is left" in message


def test_output_that_cannot_be_written(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lipsformer.train import run_folder

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_folder, "save_state", full)
    assert "run: cannot be written" in refusal(photos, tmp_path / "run")
