"""The command line's contract: exit status, one line on stderr, JSON alone on stdout."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from lipsformer.images.samples import SAMPLES
from tests.support.command import Run
from tests.support.trained import Trained

PHOTO = str(SAMPLES / "Kaiser.jpg")
COMMANDS = (
    "models",
    "download",
    "data",
    "train",
    "stability",
    "eval",
    "predict",
    "convert",
    "push",
    "lipschitz",
    "certify",
    "export",
    "verify",
    "benchmark",
    "serve",
    "doctor",
)


def refused(run: Run, *arguments: object) -> str:
    """The one line with which a command refuses its input."""
    status, out, err = run(*arguments)
    assert status == 2, err
    assert out == ""
    assert err.startswith("lipsformer: ")
    assert err.count("\n") == 1
    return err


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['lipsformer', '--help']\nfrom lipsformer.cli import main\n"
        "try: main()\nexcept SystemExit as stop: status = stop.code\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'bentoml', 'numpy', 'PIL', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(status or (f'imported {heavy}' if heavy else 0))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for command in COMMANDS:
        assert re.search(rf"^\W+{command}\s", done.stdout, re.MULTILINE)


def test_models_as_json_gives_the_official_counts(run: Run) -> None:
    status, out, err = run("models", "--json")
    assert (status, err) == (0, "")
    rows = {row["name"]: row for row in json.loads(out)}
    assert rows["lipsformer_swin_tiny"]["parameters"] == 30_908_578
    assert rows["lipsformer_swin_small"]["parameters"] == 54_479_794
    assert rows["lipsformer_swin_base"]["parameters"] == 96_011_168
    for name, giga in (("tiny", 4.978), ("small", 9.663), ("base", 16.969)):
        assert rows[f"lipsformer_swin_{name}"]["multiply_adds"] == pytest.approx(giga * 1e9, rel=5e-3)


def test_predict_as_json_and_as_text(run: Run, trained: Trained) -> None:
    status, out, err = run("predict", trained.bundle, PHOTO, "--top-k", 3, "--json")
    assert (status, err) == (0, "")
    (answer,) = json.loads(out)
    assert answer["image"] == PHOTO
    scores = [p["score"] for p in answer["predictions"]]
    assert scores == sorted(scores, reverse=True)
    assert len(scores) == 3
    status, out, _ = run("predict", trained.checkpoint, PHOTO)
    assert status == 0
    assert answer["predictions"][0]["label"] in out.splitlines()[1]


def test_eval_counts_every_image(run: Run, trained: Trained) -> None:
    status, out, _ = run("eval", trained.bundle, trained.data, "--json")
    assert status == 0
    assert json.loads(out)["images"] == len(list(trained.data.rglob("*.jpg")))


def test_doctor_names_what_runs(run: Run) -> None:
    status, out, _ = run("doctor", "--json")
    assert status == 0
    report = json.loads(out)
    assert "CPUExecutionProvider" in report["onnxruntime_providers"]
    assert run("doctor")[0] == 0


def test_doctor_sees_runtimes_that_overwrite_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    from lipsformer.cli import doctor

    monkeypatch.setattr(doctor, "installed_versions", lambda packages: dict.fromkeys(packages, "1.0"))
    assert any("overwrite each other's files" in problem for problem in doctor.examine()["problems"])
    monkeypatch.setattr(doctor, "installed_versions", lambda _: {"torch": "1.0"})
    assert any("no ONNX Runtime: pip install" in problem for problem in doctor.examine()["problems"])


def test_bad_usage_is_one_line(run: Run) -> None:
    assert "No such command 'trian'" in refused(run, "trian")
    assert "--output" in refused(run, "export", "x.safetensors", "--outpt", "y")
    assert "Missing argument" in refused(run, "verify")
    assert "no SOURCE given; name images" in refused(run, "predict", "x.onnx")
    assert "--port" in refused(run, "serve", "bundle", "--port", "http")


def test_bad_models_are_told_apart(run: Run, tmp_path: Path) -> None:
    assert "no such file or folder" in refused(run, "predict", tmp_path / "none", PHOTO)
    assert "not a bundle (no manifest.json)" in refused(run, "predict", tmp_path, PHOTO)
    other = tmp_path / "weights.pt"
    other.write_bytes(b"PK\x03\x04")
    assert "not a model" in refused(run, "predict", other, PHOTO)
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a graph")
    assert "ONNX Runtime cannot load it" in refused(run, "predict", broken, PHOTO)
    checkpoint = tmp_path / "broken.safetensors"
    checkpoint.write_bytes(b"\x10" + b"\x00" * 30)
    assert "not a readable checkpoint" in refused(run, "predict", checkpoint, PHOTO)


def test_bad_predict_input(run: Run, trained: Trained, tmp_path: Path) -> None:
    bundle = trained.bundle
    assert "no such image file" in refused(run, "predict", bundle, tmp_path / "none.jpg")
    text = tmp_path / "text.jpg"
    text.write_text("hello")
    assert f"{text}: not an image" in refused(run, "predict", bundle, text)
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(Path(PHOTO).read_bytes()[:5000])
    assert f"{cut}: damaged or cut off" in refused(run, "predict", bundle, cut)
    assert "top_k=0: at least 1 is needed" in refused(run, "predict", bundle, PHOTO, "--top-k", 0)
    assert "--device tpu" in refused(run, "predict", bundle, PHOTO, "--device", "tpu")
    assert "--device cuda" in refused(run, "predict", trained.checkpoint, PHOTO, "--device", "cuda")
    assert "--device cuda" in refused(run, "predict", bundle, PHOTO, "--device", "cuda")


def test_bad_export_input(run: Run, trained: Trained, tmp_path: Path) -> None:
    output = tmp_path / "bundle"
    assert "no such checkpoint" in refused(run, "export", tmp_path / "none.safetensors", "--output", output)
    assert "--max-batch 0" in refused(run, "export", trained.checkpoint, "--output", output, "--max-batch", 0)
    (tmp_path / "empty").mkdir()
    parity = ("--parity-data", tmp_path / "empty")
    assert "no images" in refused(run, "export", trained.checkpoint, "--output", output, *parity)
    for option, place in (("--output", "empty/bundle"), ("--triton", "empty/deep/er")):
        outputs = {"--output": output} | {option: tmp_path / place}
        words = [word for pair in outputs.items() for word in pair]
        assert "inside of the input" in refused(run, "export", trained.checkpoint, *parity, *words)
    (tmp_path / "empty").rmdir()
    assert "exists already" in refused(run, "export", trained.checkpoint, "--output", trained.bundle)
    assert list(tmp_path.iterdir()) == []


def test_bad_eval_input(run: Run, trained: Trained, tmp_path: Path) -> None:
    assert "did you mean 'fruit'" in refused(run, "eval", trained.bundle, "frui")
    assert "no split 'val'" in refused(run, "eval", trained.bundle, trained.data, "--split", "val")
    (tmp_path / "unheard-of").mkdir()
    (tmp_path / "unheard-of" / "photo.jpg").write_bytes(Path(PHOTO).read_bytes())
    assert "unknown class 'unheard-of'" in refused(run, "eval", trained.bundle, tmp_path)


def test_bad_train_input(run: Run, trained: Trained, tmp_path: Path) -> None:
    output = tmp_path / "run"
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no-such-data" in refused(run, "train", "no-such-data", "--output", output)
    assert "0 classes found" in refused(run, "train", empty, "--output", output)
    train = ("train", trained.data, "--output", output)
    assert "did you mean 'lipsformer_swin_nano'" in refused(run, *train, "--model", "lipsformer_swin_nan")
    assert "did you mean 'fruit'" in refused(run, *train, "--recipe", "friut")
    assert "did you mean 'learning_rate'" in refused(run, *train, "--set", "learning_rat=1")
    assert "write it as key=value" in refused(run, *train, "--set", "learning_rate")
    assert "epochs=0" in refused(run, *train, "--epochs", 0)
    assert "--device tpu" in refused(run, *train, "--device", "tpu")
    assert not output.exists()
    output.mkdir()
    (output / "notes.txt").write_text("mine")
    assert "holds other files and no training" in refused(run, *train)
    assert "exists already" in refused(run, *train, "--resume", "never")
    assert "'maybe' is not one of 'auto', 'never'" in refused(run, *train, "--resume=maybe")
    assert (output / "notes.txt").read_text() == "mine"


def test_a_photo_that_cannot_be_read_is_named_by_train(run: Run, trained: Trained, tmp_path: Path) -> None:
    photos, output = tmp_path / "photos", tmp_path / "run"
    shutil.copytree(trained.data, photos)
    for label in trained.classes:  # two of each: one may be held out
        shutil.copy(photos / label / f"{label}.jpg", photos / label / "second.jpg")
    for name in ("Kaiser.jpg", "second.jpg"):
        (photos / "Kaiser" / name).write_bytes(Path(PHOTO).read_bytes()[:4000])
    small = ("--model", "lipsformer_swin_nano", "--set", "model.embed_dim=16", "--set", "model.image_size=32")
    status, _, err = run("train", photos, "--output", output, "--epochs", 1, *small)
    assert status == 1  # the class has lost all its images
    assert "no image can be read of 1 of 14 classes ('Kaiser')" in err
    assert (output / "last.safetensors").is_file()
    assert f"{photos / 'Kaiser'}" in err
    assert "2 images unreadable" in err
    listed = (output / "unreadable.txt").read_text().splitlines()
    assert len(listed) == 2
    assert all("damaged or cut off" in line for line in listed)
    assert "finished already" in run("train", photos, "--output", output, "--epochs", 1, *small, "--resume")[2]


def test_bad_data_input(run: Run, tmp_path: Path) -> None:
    assert "did you mean 'fruit'" in refused(run, "data", "friut", "--output", tmp_path / "out")
    assert "no such file" in refused(
        run, "data", "fruit", "--output", tmp_path / "out", "--source", tmp_path / "no.whl"
    )
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    assert "exists already" in refused(run, "data", "fruit", "--output", tmp_path / "taken")


def test_bad_export_options(run: Run, trained: Trained, tmp_path: Path) -> None:
    export = ("export", trained.checkpoint, "--output", tmp_path / "bundle")
    assert "--precision fp61: unknown; did you mean 'fp16'?" in refused(run, *export, "--precision", "fp32, fp61")
    assert "int8 needs --calibration DATA" in refused(run, *export, "--precision", "int8")
    assert "did you mean 'fp16.relative_l2'?" in refused(run, *export, "--threshold", "fp16.relative=1")
    assert "nothing: no such folder" in refused(run, *export, "--precision", "int8", "--calibration", "nothing")
    assert list(tmp_path.iterdir()) == []


def test_verify_through_the_command_line(run: Run, trained: Trained, tmp_path: Path) -> None:
    status, out, err = run("verify", trained.bundle, "--json")
    assert (status, err) == (0, "")
    assert json.loads(out)["passed"] is True
    status, out, err = run("verify", trained.bundle)
    assert status == 0
    assert out.startswith("# Parity: PASSED")
    assert "not a bundle" in refused(run, "verify", tmp_path)
    bundle = shutil.copytree(trained.bundle, tmp_path / "bundle")
    manifest = (bundle / "manifest.json").read_text()
    (bundle / "manifest.json").write_text(manifest.replace("Kaiser", "Keiser"))
    status, out, err = run("verify", bundle)
    assert (status, out) == (1, "")
    assert "manifest.json: its SHA-256 is not the one it was written with" in err
    assert err.count("\n") == 1


def test_bad_serve_input(run: Run, trained: Trained, tmp_path: Path) -> None:
    assert "not a bundle" in refused(run, "serve", tmp_path)
    assert "workers" in refused(run, "serve", trained.bundle, "--workers", 0)
    assert "the bundle has fp32" in refused(run, "serve", trained.bundle, "--precision", "int8")
    assert "port" in refused(run, "serve", trained.bundle, "--port", 70000)
    assert "not-a-host" in refused(run, "serve", trained.bundle, "--host", "not-a-host")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert str(port) in refused(run, "serve", trained.bundle, "--port", port)


def test_a_failed_gate_exits_with_1(run: Run, trained: Trained, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    for file in trained.bundle.iterdir():
        (bundle / file.name).write_bytes(file.read_bytes())
    (bundle / "parity.md").write_text("all is well")
    status, out, err = run("predict", bundle, PHOTO)
    assert (status, out) == (1, "")
    assert "parity.md: its SHA-256 is not the manifest's" in err


def test_export_and_train_through_the_command_line(run: Run, trained: Trained, tmp_path: Path) -> None:
    assert run("models")[1].startswith("model ")
    sizes = ("model.embed_dim=16", "model.image_size=32", "model.depths=[1, 1, 1, 1]", "workers=0")
    tiny = ["--model=lipsformer_swin_nano", *(f"--set={size}" for size in sizes)]
    train = ("train", tmp_path / "data", "--output", tmp_path / "run", "--epochs", 1, *tiny)
    shutil.copytree(trained.data, tmp_path / "data" / "train")
    assert "one image per class leaves none to validate on" in refused(run, *train)
    shutil.copytree(trained.data, tmp_path / "data" / "val")
    status, out, err = run(*train)
    assert (status, out) == (0, "")
    assert "next: lipsformer export" in err.splitlines()[-1]
    last = tmp_path / "run" / "last.safetensors"
    status, out, _ = run("export", last, "--output", tmp_path / "bundle", "--json")
    assert status == 0
    assert json.loads(out)["files"][0]["parity"]["passed"] is True
    assert "cannot be written" in refused(run, "export", last, "--output", "/proc/bundle")
