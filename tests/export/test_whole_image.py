"""The graph with the resize inside: Pillow's pixels to the bit, and a gate that a wrong resize does not pass."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

from lipsformer import Preprocessing, load_predictor
from lipsformer.bundle.manifest import read_manifest
from lipsformer.cli.app import app
from lipsformer.export import ExportSettings, export_bundle, verify_bundle
from lipsformer.export.whole_image.gate import check_whole_image
from lipsformer.export.whole_image.graph import WHOLE_IMAGE_NAME, whole_image_graph
from lipsformer.export.whole_image.resize import resize_graph
from lipsformer.inference.runtimes import OnnxRuntime, open_session
from lipsformer.system.errors import GateError, InputError
from tests.support.trained import Trained

# (height, width): phone photos, portraits that Pillow 13 resizes columns first, panoramas, thin and tiny images.
SIZES = [(600, 800), (800, 600), (348, 348), (900, 333), (333, 900), (40, 900), (900, 40), (224, 224), (225, 223),
         (31, 33), (1, 1), (1, 300), (300, 1), (2, 5), (1100, 1000)]  # fmt: skip


def resized(graph: onnx.ModelProto, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    session = open_session(graph.SerializeToString(), cuda=False, threads=1)
    (pixels,) = session.run(None, {"images": images})
    return np.asarray(pixels, np.uint8)


@pytest.fixture(scope="module")
def whole(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a whole-image graph."""
    bundle = tmp_path_factory.mktemp("whole") / "bundle"
    export_bundle(trained.checkpoint, bundle, ExportSettings(whole_image=True, parity_images=4, max_batch=4))
    return bundle


@pytest.mark.parametrize(
    "preprocessing",
    [
        Preprocessing(image_size=224),
        Preprocessing(image_size=32, crop_pct=1.0),
        Preprocessing(image_size=65, crop_pct=0.95, interpolation="bilinear"),
        Preprocessing(image_size=96, crop_pct=0.9, interpolation="bilinear"),
    ],
    ids=lambda spec: f"{spec.image_size}-{spec.interpolation}",
)
def test_the_resize_is_pillows_to_the_bit(preprocessing: Preprocessing) -> None:
    graph = resize_graph(preprocessing, opset=20, ir_version=10)
    onnx.checker.check_model(graph, full_check=True)
    session = open_session(graph.SerializeToString(), cuda=False, threads=1)
    random = np.random.default_rng(0)
    for height, width in SIZES:
        images = random.integers(0, 256, (2, height, width, 3), np.uint8)  # noise up to every border
        (found,) = session.run(None, {"images": images})
        wanted = [preprocessing.apply(Image.fromarray(image)) for image in images]
        np.testing.assert_array_equal(found, wanted, err_msg=f"{width} x {height}")


def test_it_answers_as_predict_does(trained: Trained, whole: Path, samples: list[Path]) -> None:
    manifest = read_manifest(whole)
    (file,) = [file for file in manifest.files if file.kind == "whole-image"]
    assert (file.name, file.precision, manifest.precisions) == (WHOLE_IMAGE_NAME, "fp32", ("fp32",))
    assert file.parity is not None
    assert file.parity["passed"]
    session = open_session(whole / file.name, cuda=False)
    predictor = load_predictor(whole, "cpu")
    for path in samples[:4]:
        with Image.open(path) as photo:
            portrait = photo.crop((40, 0, 240, photo.height))
        predicted = predictor.predict([portrait], top_k=3)[0]
        logits, features = session.run(None, {"images": np.asarray(portrait)[np.newaxis]})
        scores = np.exp(logits[0] - logits[0].max())
        scores /= scores.sum()
        for prediction in predicted:
            assert scores[prediction.index] == pytest.approx(prediction.score, abs=1e-6)
        assert features.shape == (1, predictor.runtime.channels)


def test_verify_checks_it_again(whole: Path, tmp_path: Path) -> None:
    found = verify_bundle(whole, device="cpu")
    assert found.failures == []
    assert f"{WHOLE_IMAGE_NAME}: the answers of the graph behind it, for images of 14 sizes" in found.to_text()
    assert found.to_dict()["whole_images"][WHOLE_IMAGE_NAME]["passed"]


def test_a_resize_that_is_slightly_wrong_does_not_pass(
    trained: Trained, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = Preprocessing(image_size=32)
    graph = shutil.copy(whole / "ort-fp32.onnx", tmp_path)
    other = Preprocessing(image_size=32, interpolation="bilinear")
    onnx.save(whole_image_graph(onnx.load(graph), other), tmp_path / "wrong.onnx")
    found = check_whole_image(tmp_path / "wrong.onnx", tmp_path / "ort-fp32.onnx", spec, 1e-5)
    assert found.failure is not None
    assert "relative_l2" in found.failure
    monkeypatch.setattr("lipsformer.export.bundle.whole_image_graph", lambda graph, _: whole_image_graph(graph, other))
    with pytest.raises(GateError, match=r"whole-image.onnx: no bundle written: its answers are not those"):
        export_bundle(trained.checkpoint, tmp_path / "bundle", ExportSettings(whole_image=True, parity_images=2))
    assert not (tmp_path / "bundle").exists()


def test_it_is_not_a_model_for_our_runtimes(whole: Path) -> None:
    with pytest.raises(InputError, match="takes images of any size; it is for other programs: give the bundle"):
        OnnxRuntime(whole / WHOLE_IMAGE_NAME)


def test_the_option_of_the_command(trained: Trained, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    done = CliRunner().invoke(app, ["export", str(trained.checkpoint), "--output", str(bundle), "--whole-image",
                                    "--parity-images", "2"])  # fmt: skip
    assert done.exit_code == 0, done.output
    assert (bundle / WHOLE_IMAGE_NAME).is_file()
