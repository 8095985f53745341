"""The promise of the whole: the same answer from the checkpoint, the ONNX file, the bundle and over HTTP."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from PIL import Image, ImageOps

from lipsformer import load_predictor
from lipsformer.images.samples import SAMPLES
from tests.support.trained import Trained


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Twenty photos: the fourteen samples, and six as phones, printers and designers hand them over."""
    folder = tmp_path_factory.mktemp("photos")
    samples = sorted(SAMPLES.glob("*.jpg"))

    turned = folder / "exif6.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn by 90 degrees to see it so
    Image.open(samples[0]).transpose(Image.Transpose.ROTATE_90).save(turned, exif=exif, quality=95)

    cmyk = folder / "cmyk.jpg"
    Image.open(samples[1]).convert("CMYK").save(cmyk, quality=95)

    alpha = folder / "alpha.png"
    photo = Image.open(samples[2])
    photo.putalpha(ImageOps.invert(photo.convert("L")))
    photo.save(alpha)

    Image.open(samples[3]).convert("P").save(folder / "palette.gif")
    Image.open(samples[4]).convert("L").resize((97, 301)).save(folder / "gray.webp")
    Image.open(samples[5]).convert("I;16").save(folder / "deep.png")
    return [*samples, *sorted(folder.iterdir())]


def test_the_same_answers_everywhere(trained: Trained, photos: list[Path], server: str) -> None:
    assert len(photos) == 20
    answers = [
        load_predictor(model).predict(photos)
        for model in (trained.checkpoint, trained.bundle / "ort-fp32.onnx", trained.bundle)
    ]
    for number, photo in enumerate(photos):
        reference = answers[0][number]
        for other in (answers[1][number], answers[2][number]):
            assert [p.index for p in other] == [p.index for p in reference], photo
            assert [p.score for p in other] == pytest.approx([p.score for p in reference], abs=1e-4)
        with photo.open("rb") as file:
            response = httpx.post(f"{server}/classify", files={"image": (photo.name, file)}, timeout=30)
        assert response.status_code == 200, response.text
        served = response.json()["predictions"]
        assert [p["index"] for p in served] == [p.index for p in reference], photo
        assert [p["label"] for p in served] == [p.label for p in reference]
        assert [p["score"] for p in served] == pytest.approx([p.score for p in reference], abs=1e-4)


def test_the_photos_are_told_apart(trained: Trained, photos: list[Path]) -> None:
    """Equal answers prove nothing if the model answers everything alike."""
    best = [answer[0].score for answer in load_predictor(trained.bundle).predict(photos)]
    assert max(best) - min(best) > 0.01
    assert len({round(score, 4) for score in best}) > 10
