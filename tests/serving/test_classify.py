"""The HTTP service, from outside: a real process, a real socket, good and bad requests."""

from __future__ import annotations

import concurrent.futures
import http.client
import io
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from jsonschema import Draft202012Validator
from PIL import Image

from lipsformer import load_predictor
from lipsformer.bundle.manifest import read_manifest
from lipsformer.export import ExportSettings, export_bundle
from lipsformer.images.samples import SAMPLES
from tests.support.http.server import App, app_running
from tests.support.images.files import png
from tests.support.models.acceptance import ACCEPTED, LOW_SCORE, UNFAMILIAR
from tests.support.models.certified import make_certified
from tests.support.trained import Trained

PHOTO = SAMPLES / "Kaiser.jpg"
JUDGED = {"accepted", "reason", "distance"}  # the fields of an answer that a rule was applied to


@pytest.fixture
def client(server: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server, timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def choosy_app(choosy: Trained) -> Iterator[App]:
    """An application whose model has a rule."""
    with app_running(choosy.bundle) as app:
        yield app


def post_raw(client: httpx.Client, body: bytes, kind: str = "image/jpeg", **query: Any) -> httpx.Response:
    return client.post("/classify", content=body, headers={"Content-Type": kind}, params=query)


def reason(response: httpx.Response, status: int) -> str:
    """The reason of a refusal, after a look at its form."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["status"] == status
    assert problem["title"]
    assert "Traceback" not in response.text
    return str(problem["reason"])


def test_form_and_raw_body_get_the_same_answer(client: httpx.Client, trained: Trained) -> None:
    body = PHOTO.read_bytes()
    raw = post_raw(client, body).json()
    form = client.post("/classify", files={"image": ("a name ../../etc", body)}).json()
    octets = post_raw(client, body, "application/octet-stream").json()
    assert raw["predictions"] == form["predictions"] == octets["predictions"]
    scores = [p["score"] for p in raw["predictions"]]
    assert len(scores) == 5
    assert scores == sorted(scores, reverse=True)
    assert all(p["label"] == trained.classes[p["index"]] for p in raw["predictions"])
    assert raw["provider"] == "CPUExecutionProvider"
    assert raw["timing_ms"]["total"] >= raw["timing_ms"]["infer"] > 0


@pytest.mark.parametrize(("photo", "reason"), [(ACCEPTED, None), (LOW_SCORE, "low_score"), (UNFAMILIAR, "unfamiliar")])
def test_an_answer_says_whether_it_is_accepted(
    choosy_app: App, choosy: Trained, photo: Path, reason: str | None
) -> None:
    (expected,) = load_predictor(choosy.bundle).predict([photo], 5)
    with httpx.Client(base_url=choosy_app.url, timeout=30) as client:
        answer = post_raw(client, photo.read_bytes()).json()
        one_class = post_raw(client, photo.read_bytes(), top_k=1).json()
    assert (answer["accepted"], answer["reason"]) == (reason is None, reason) == (expected.accepted, expected.reason)
    assert answer["distance"] == pytest.approx(expected.distance, abs=1e-4)
    assert [found["label"] for found in answer["predictions"]] == [wanted.label for wanted in expected]
    for found, wanted in zip(answer["predictions"], expected, strict=True):
        assert found["score"] == pytest.approx(wanted.score, abs=1e-4)
    assert {name: one_class[name] for name in JUDGED} == pytest.approx({name: answer[name] for name in JUDGED})


@pytest.mark.slow
def test_an_answer_has_its_certified_radius(client: httpx.Client, tmp_path: Path) -> None:
    checkpoint, bundle = make_certified(tmp_path / "model.safetensors"), tmp_path / "bundle"
    export_bundle(checkpoint, bundle, ExportSettings(max_batch=2, parity_images=2))
    (own,) = load_predictor(checkpoint, "cpu").predict([PHOTO])
    with app_running(bundle) as app, httpx.Client(base_url=app.url, timeout=30) as other:
        answer = post_raw(other, PHOTO.read_bytes()).json()
        api = other.get("/openapi.json").json()
    assert own.certified_radius is not None
    assert 0 < answer["certified_radius"] <= own.certified_radius
    schema = {"components": api["components"], "$ref": "#/components/schemas/Classification"}
    Draft202012Validator(schema).validate(answer)
    assert not Draft202012Validator(schema).is_valid({**answer, "certified_radius": -1})
    assert "certified_radius" not in post_raw(client, PHOTO.read_bytes()).json()


def test_without_a_rule_an_answer_does_not_say_so(client: httpx.Client, choosy_app: App) -> None:
    without = post_raw(client, PHOTO.read_bytes()).json()
    with httpx.Client(base_url=choosy_app.url, timeout=30) as other:
        judged = post_raw(other, PHOTO.read_bytes()).json()
    assert judged.keys() - without.keys() == JUDGED
    assert without.keys() <= judged.keys()


def test_top_k_from_query_and_form(client: httpx.Client) -> None:
    body = PHOTO.read_bytes()
    assert len(post_raw(client, body, top_k=2).json()["predictions"]) == 2
    form = client.post("/classify", files={"image": body}, data={"top_k": "3"})
    assert len(form.json()["predictions"]) == 3
    assert len(post_raw(client, body, top_k=1000).json()["predictions"]) == 14  # as many as there are
    for bad in ("0", "-1", "many", "1.5", "", "9" * 5000):
        assert reason(post_raw(client, body, top_k=bad), 400) == "bad_top_k"


def test_images_that_are_none_are_refused(client: httpx.Client) -> None:
    photo = PHOTO.read_bytes()
    assert reason(post_raw(client, b"hello, I am a photo"), 415) == "not_an_image"
    assert reason(post_raw(client, b"%PDF-1.7 and so on"), 415) == "not_an_image"
    assert reason(post_raw(client, b""), 400) == "empty"
    assert reason(client.post("/classify", files={"image": b""}), 400) == "empty"
    assert reason(post_raw(client, photo[:3000]), 422) == "damaged"
    assert reason(post_raw(client, png(900, 900, color=2), "image/png"), 422) == "damaged"
    assert post_raw(client, photo, "image/png").status_code == 200  # the content counts, not its name


def test_forms_that_hold_no_image_are_refused(client: httpx.Client) -> None:
    assert reason(client.post("/classify", files={"photo": PHOTO.read_bytes()}), 400) == "missing_field"
    kind = "multipart/form-data; boundary=x"
    assert reason(post_raw(client, b"--y\r\n nonsense", kind), 400) == "malformed_form"
    assert reason(post_raw(client, b"nonsense", "multipart/form-data"), 400) == "malformed_form"
    assert reason(client.post("/classify", data={"image": "text"}), 415) == "wrong_content_type"
    assert reason(client.post("/classify", json={"image": "text"}), 415) == "wrong_content_type"
    two = [("image", PHOTO.read_bytes()), ("image", PHOTO.read_bytes())]
    assert reason(client.post("/classify", files=two), 400) == "several_images"


def test_an_address_in_place_of_an_image_is_never_fetched(client: httpx.Client) -> None:
    with socket.create_server(("127.0.0.1", 0)) as trap:
        trap.settimeout(1.0)
        url = f"http://127.0.0.1:{trap.getsockname()[1]}/photo.jpg"
        assert reason(client.post("/classify", files={"image": (None, url)}), 422) == "not_a_file"
        assert reason(post_raw(client, url.encode()), 415) == "not_an_image"
        assert reason(client.post("/classify", params={"image": url}), 415) == "wrong_content_type"
        with pytest.raises(TimeoutError):
            trap.accept()


def test_limits_hold_before_anything_is_decoded(client: httpx.Client, server: str) -> None:
    assert reason(post_raw(client, png(60000, 60000, color=2), "image/png"), 413) == "too_many_pixels"
    assert reason(post_raw(client, png(1001, 1000, color=2), "image/png"), 413) == "too_many_pixels"
    assert reason(post_raw(client, b"\xff\xd8" + b"x" * 400_000), 413) == "too_many_bytes"
    assert reason(client.post("/classify", files={"image": b"x" * 310_000}), 413) == "too_many_bytes"

    def endless() -> Iterator[bytes]:  # chunked: no content-length says how much will come
        for _ in range(50):
            yield b"x" * 10_000

    chunked = client.post("/classify", content=endless(), headers={"Content-Type": "image/jpeg"})
    assert reason(chunked, 413) == "too_many_bytes"

    connection = http.client.HTTPConnection(urlsplit(server).netloc, timeout=10)
    connection.putrequest("POST", "/classify")
    connection.putheader("Content-Type", "image/jpeg")
    connection.putheader("Content-Length", str(10**12))  # announced, never sent
    connection.endheaders()
    answer = connection.getresponse()
    assert answer.status == 413
    assert json.load(answer)["reason"] == "too_many_bytes"
    connection.close()


def test_wrong_method_and_unknown_path(client: httpx.Client) -> None:
    response = client.get("/classify")
    assert reason(response, 405) == "refused"
    assert response.headers["allow"] == "POST"
    assert reason(client.get("/no-such-page"), 404) == "not_found"


def test_info_describes_the_model(client: httpx.Client, trained: Trained) -> None:
    info = client.get("/info").json()
    assert info["classes"] == list(trained.classes)
    assert info["runtime"]["provider"] == "CPUExecutionProvider"
    assert info["runtime"]["precision"] == "fp32"
    assert info["parity"]["passed"] is True
    assert info["preprocessing"]["image_size"] == 32
    assert info["calibration"] == {"temperature": 1.0, "acceptance": None}
    assert info["limits"]["max_bytes"] == 300_000
    assert info["limits"]["max_pixels"] == 1_000_000
    assert info["runtime"]["file"] == info["bundle"]["file"] == "ort-fp32.onnx"
    assert info["bundle"]["file_sha256"] == read_manifest(trained.bundle).graph().sha256


def test_info_has_the_thresholds(choosy_app: App) -> None:
    thresholds = {"min_score": 0.7, "max_distance": 1.0, "max_error": 0.05, "confidence": 0.9, "coverage": 0.5}
    info = httpx.get(f"{choosy_app.url}/info").json()
    assert info["calibration"] == {"temperature": 1.5, "acceptance": {**thresholds, "photos": 100}}


def test_health_and_metrics(client: httpx.Client) -> None:
    assert client.get("/livez").status_code == 200
    assert client.get("/readyz").status_code == 200
    assert client.get("/info").status_code == 200
    assert 'lipsformer_requests_total{route="/info",status="200"}' in client.get("/metrics").text


def test_unknown_paths_do_not_grow_the_metrics(client: httpx.Client) -> None:
    for number in range(50):
        assert client.get(f"/scan/{number}").status_code == 404
    metrics = client.get("/metrics").text
    assert "/scan/" not in metrics
    assert 'route="other",status="404"' in metrics


def test_the_page_is_whole_and_closed(client: httpx.Client) -> None:
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http://" not in page.text.replace("http-equiv", "")
    assert "https://" not in page.text
    assert "style=" not in page.text
    for name in ("page.css", "page.js", "icon.svg"):
        assert name in page.text
        part = client.get(f"/{name}")
        assert part.status_code == 200
        assert part.headers["x-content-type-options"] == "nosniff"


def test_many_clients_at_once_all_get_their_own_answers(client: httpx.Client, trained: Trained) -> None:
    photos = sorted(SAMPLES.glob("*.jpg"))
    expected = load_predictor(trained.bundle).predict(photos, 1)

    def ask(number: int) -> bool:
        photo = number % len(photos)
        response = post_raw(client, photos[photo].read_bytes(), top_k=1)
        best = response.json()["predictions"][0]
        wanted = expected[photo][0]
        return bool(best["label"] == wanted.label and abs(best["score"] - wanted.score) < 1e-4)

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        assert all(pool.map(ask, range(96)))


def test_a_full_server_rejects_at_once_and_recovers(trained: Trained) -> None:
    big = io.BytesIO()
    Image.effect_noise((900, 900), 90).convert("RGB").save(big, "PNG", compress_level=1)
    with app_running(trained.bundle, MAX_PENDING="2") as app, httpx.Client(base_url=app.url, timeout=60) as client:

        def ask(_: int) -> httpx.Response:
            return post_raw(client, big.getvalue(), "image/png")

        with concurrent.futures.ThreadPoolExecutor(12) as pool:
            answers = list(pool.map(ask, range(24)))
        statuses = {answer.status_code for answer in answers}
        assert statuses == {200, 503}, statuses
        shed = next(answer for answer in answers if answer.status_code == 503)
        assert reason(shed, 503) == "overloaded"
        assert shed.headers["retry-after"] == "1"
        assert ask(0).status_code == 200
