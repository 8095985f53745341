"""The Open Inference Protocol with its real clients, next to /classify; and the programs in docs/open-inference.md.

The types of MLServer lie in a folder of the environment, see the Makefile: the package's own `__init__` imports its
server, which needs an older FastAPI. So the programs that use them run with an empty package in its place, and with a
stand-in for pandas, which a codec imports that they do not use.
"""

from __future__ import annotations

import base64
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from lipsformer import load_predictor
from lipsformer.bundle.manifest import read_manifest
from lipsformer.images.samples import SAMPLES
from tests.support.http.server import KEY, App, Keyed, app_running
from tests.support.models.acceptance import ACCEPTED, LOW_SCORE, UNFAMILIAR
from tests.support.trained import Trained

MANUAL = (Path(__file__).parents[4] / "docs" / "open-inference.md").read_text(encoding="utf-8")
MLSERVER = Path(sys.prefix) / "mlserver"  # where the Makefile installs it
TYPES_ALONE = """
import sys, types
package, pandas = types.ModuleType("mlserver"), types.ModuleType("pandas")
package.__path__ = [sys.argv.pop(1) + "/mlserver"]
pandas.DataFrame = pandas.Series = object
sys.modules.update(mlserver=package, pandas=pandas)
"""
PHOTOS = sorted(SAMPLES.glob("*.jpg"))
MODEL = "lipsformer"


@pytest.fixture(scope="module")
def app(trained: Trained) -> Iterator[App]:
    with app_running(trained.bundle) as app:
        yield app


@pytest.fixture
def client(app: App) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(urlsplit(app.url).netloc) as client:
        yield client


def encoded(photos: list[Path], *, binary: bool = True) -> triton.InferInput:
    """The photos as an input, in one of the two forms."""
    contents = [photo.read_bytes() for photo in photos]
    values = np.array(contents if binary else [base64.b64encode(content) for content in contents], object)
    return triton.InferInput("image", [len(photos)], "BYTES").set_data_from_numpy(values, binary_data=binary)


def pixels(values: np.ndarray, *, binary: bool = True) -> triton.InferInput:
    return triton.InferInput("pixels", list(values.shape), "UINT8").set_data_from_numpy(values, binary_data=binary)


def classified(url: str, photo: Path) -> dict[int, float]:
    """Scores by class that /classify gives a photo."""
    answer = httpx.post(f"{url}/classify?top_k=99", files={"image": photo.read_bytes()}).json()
    return {found["index"]: found["score"] for found in answer["predictions"]}


def test_the_server_and_the_model_are_described(client: triton.InferenceServerClient, trained: Trained) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(MODEL)
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data", "classification"]
    metadata = client.get_model_metadata(MODEL)
    version = read_manifest(trained.bundle).graph().sha256[:12]
    assert (metadata["name"], metadata["versions"], metadata["platform"]) == (MODEL, [version], "onnxruntime_onnx")
    shapes = {tensor["name"]: (tensor["datatype"], tensor["shape"]) for tensor in metadata["inputs"]}
    assert shapes == {"pixels": ("UINT8", [-1, 32, 32, 3]), "image": ("BYTES", [-1])}
    assert client.get_model_metadata(MODEL, version) == metadata
    assert client.is_model_ready(MODEL, version)
    assert not client.is_model_ready("other")
    assert not client.is_model_ready(MODEL, "1")
    with pytest.raises(InferenceServerException, match=f"no version '1'; the model's version is {version}"):
        client.infer(MODEL, [encoded(PHOTOS[:1])], model_version="1")


@pytest.mark.parametrize("binary", [True, False])
def test_photos_and_pixels_get_the_scores_of_classify(
    client: triton.InferenceServerClient, app: App, trained: Trained, binary: bool
) -> None:
    predictor = load_predictor(trained.bundle, "cpu")
    for photo in PHOTOS[:3]:
        expected = [score for _, score in sorted(classified(app.url, photo).items())]
        prepared = predictor.prepare(photo)[None]
        for given in (encoded([photo], binary=binary), pixels(prepared, binary=binary)):
            answer = client.infer(MODEL, [given], request_id="seven")
            assert answer.as_numpy("scores").tolist() == [expected]  # to the bit
            assert answer.as_numpy("labels").tolist() == [trained.classes[int(np.argmax(expected))].encode()]
            assert answer.get_response()["id"] == "seven"
        outputs = predictor.runtime.infer(prepared)
        assert answer.as_numpy("logits") == pytest.approx(outputs.logits, abs=1e-4)
        assert answer.as_numpy("features") == pytest.approx(outputs.features, abs=1e-4)


def test_many_photos_are_answered_in_their_order(client: triton.InferenceServerClient, app: App) -> None:
    given = encoded(PHOTOS)
    given.set_shape([len(PHOTOS), 1]).set_data_from_numpy(np.array([[photo.read_bytes()] for photo in PHOTOS], object))
    scores = client.infer(MODEL, [given], outputs=[triton.InferRequestedOutput("scores")]).as_numpy("scores")
    for row, photo in zip(scores, PHOTOS, strict=True):
        assert row == pytest.approx([score for _, score in sorted(classified(app.url, photo).items())], abs=1e-6)
    record = app.records[-len(PHOTOS) - 1]
    assert (record.route, record.status, record.images) == ("/v2/models/{model}/infer", 200, len(PHOTOS))


def test_only_what_is_asked_for_is_given(client: triton.InferenceServerClient, app: App, trained: Trained) -> None:
    wanted = [triton.InferRequestedOutput("labels", binary_data=False), triton.InferRequestedOutput("features")]
    answer = client.infer(MODEL, [encoded(PHOTOS[:2])], outputs=wanted)
    assert [output["name"] for output in answer.get_response()["outputs"]] == ["labels", "features"]
    assert "data" in answer.get_output("labels")
    assert answer.get_output("features")["parameters"]["binary_data_size"] == answer.as_numpy("features").nbytes
    for name in ("logits", "scores"):
        output = triton.InferRequestedOutput(name, class_count=3)
        top = client.infer(MODEL, [encoded(PHOTOS[:2])], outputs=[output]).as_numpy(name)
        assert top.shape == (2, 3)
        first = [text.decode().split(":") for text in top[0]]
        ranked = sorted(classified(app.url, PHOTOS[0]).items(), key=lambda found: -found[1])[:3]
        assert [(int(index), label) for _, index, label in first] == [(k, trained.classes[k]) for k, _ in ranked]
    assert [float(value) for value, _, _ in first] == pytest.approx([score for _, score in ranked], abs=1e-6)


def test_answers_say_whether_they_are_accepted(choosy: Trained) -> None:
    photos = [ACCEPTED, LOW_SCORE, UNFAMILIAR]
    with app_running(choosy.bundle, MODEL_NAME="choosy") as app:
        with triton.InferenceServerClient(urlsplit(app.url).netloc) as client:
            answer = client.infer("choosy", [encoded(photos)])
        metrics = httpx.get(f"{app.url}/metrics").text
    assert answer.as_numpy("accepted").tolist() == [True, False, False]
    expected = [found.distance for found in load_predictor(choosy.bundle).predict(photos)]
    assert answer.as_numpy("distance") == pytest.approx(expected, abs=1e-4)
    assert 'lipsformer_not_accepted_total{reason="unfamiliar"}' in metrics
    assert 'lipsformer_requests_total{route="/v2/models/{model}/infer",status="200"}' in metrics


def test_a_key_is_needed_except_for_health(keyed: Keyed) -> None:
    with triton.InferenceServerClient(urlsplit(keyed.url).netloc) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert not client.is_model_ready(MODEL)
        with pytest.raises(InferenceServerException, match=r"\[401\] a key is needed"):
            client.infer(MODEL, [encoded(PHOTOS[:1])])
        answer = client.infer(MODEL, [encoded(PHOTOS[:1])], headers={"Authorization": f"Bearer {KEY}"})
        assert answer.as_numpy("labels").shape == (1,)
        with pytest.raises(InferenceServerException, match=r"\[413\] 9 images, limit 8"):
            client.infer(MODEL, [encoded(PHOTOS[:9])], headers={"X-API-Key": KEY})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "photo.jpg").write_bytes(PHOTOS[0].read_bytes())
    return tmp_path


def test_the_commands_in_the_manual_work(app: App, folder: Path, trained: Trained) -> None:
    (commands,) = re.findall(r"```sh\n(.*?)```", MANUAL, re.DOTALL)
    script = commands.replace("http://127.0.0.1:3000", app.url).replace("curl ", "curl --silent --fail ")
    done = subprocess.run(["bash", "-eo", "pipefail", "-c", script], cwd=folder, capture_output=True, check=True)
    assert b'"name":"pixels"' in done.stdout
    best = max(classified(app.url, PHOTOS[0]).items(), key=lambda found: found[1])
    assert f'"data":["{trained.classes[best[0]]}"]'.encode() in done.stdout
    assert str(best[1]).encode() in done.stdout


@pytest.mark.parametrize("client", ["tritonclient", "mlserver"])
def test_the_programs_in_the_manual_work(client: str, app: App, folder: Path, trained: Trained) -> None:
    (program,) = (text for text in re.findall(r"```python\n(.*?)```", MANUAL, re.DOTALL) if f" {client}" in text)
    assert "lipsformer." not in program
    arguments = [urlsplit(app.url).netloc]
    if client == "mlserver":
        if not MLSERVER.is_dir():
            pytest.skip(f"pip install --no-deps --target {MLSERVER} mlserver")
        program, arguments = TYPES_ALONE + program, [str(MLSERVER), app.url]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments, "photo.jpg"], cwd=folder, capture_output=True, text=True, check=True
    )
    best = max(classified(app.url, PHOTOS[0]).items(), key=lambda found: found[1])
    assert trained.classes[best[0]] in done.stdout
    assert f"{best[1]:.3f}"[:4] in done.stdout
