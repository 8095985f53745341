"""POST /classify_batch, from outside: every image is answered or refused separately."""

from __future__ import annotations

import collections
import concurrent.futures
import io
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from PIL import Image
from prometheus_client import REGISTRY

from lipsformer import load_predictor
from lipsformer.images.samples import SAMPLES
from tests.support.http.server import app_running
from tests.support.models.acceptance import ACCEPTED, UNFAMILIAR
from tests.support.trained import Trained

PHOTOS = sorted(SAMPLES.glob("*.jpg"))


@pytest.fixture
def client(server: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server, timeout=60) as client:
        yield client


def post(client: httpx.Client, *files: tuple[str, bytes], **data: str) -> httpx.Response:
    return client.post("/classify_batch", files=[("images", file) for file in files], data=data)


def not_accepted() -> collections.Counter[str]:
    """The counter of this process, by reason."""
    reasons = ("low_score", "unfamiliar")
    values = {
        reason: REGISTRY.get_sample_value("lipsformer_not_accepted_total", {"reason": reason}) for reason in reasons
    }
    return collections.Counter({reason: int(value or 0) for reason, value in values.items()})


def labels(response: httpx.Response) -> list[str]:
    """The best label of each image, or the reason why there is none."""
    assert response.status_code == 200, response.text
    results = response.json()["results"]
    return [r["predictions"][0]["label"] if "predictions" in r else r["problem"]["reason"] for r in results]


def test_each_image_gets_the_answer_that_it_gets_alone(client: httpx.Client, trained: Trained) -> None:
    expected = [best[0] for best in load_predictor(trained.bundle).predict(PHOTOS, 1)]
    files = [(photo.name, photo.read_bytes()) for photo in PHOTOS]
    answer = post(client, *files, top_k="2")
    assert labels(answer) == [prediction.label for prediction in expected]
    content = answer.json()
    assert [result["name"] for result in content["results"]] == [photo.name for photo in PHOTOS]
    assert all(len(result["predictions"]) == 2 for result in content["results"])
    for result, prediction in zip(content["results"], expected, strict=True):
        assert abs(result["predictions"][0]["score"] - prediction.score) < 1e-4
    assert content["request_id"] == answer.headers["x-request-id"]
    assert content["timing_ms"]["total"] > 0


def test_each_answer_says_whether_it_is_accepted_and_refusals_are_counted_once(
    client: httpx.Client, choosy: Trained
) -> None:
    expected = load_predictor(choosy.bundle).predict(PHOTOS, 1)
    reasons = collections.Counter(answer.reason for answer in expected)
    assert reasons.keys() == {None, "low_score", "unfamiliar"}
    files = [(photo.name, photo.read_bytes()) for photo in PHOTOS]
    with app_running(choosy.bundle) as app, httpx.Client(base_url=app.url, timeout=60) as other:
        before = not_accepted()
        results = post(other, *files, ("words", b"words")).json()["results"]
        counted = not_accepted() - before
        for content in (photo.read_bytes() for photo in (ACCEPTED, UNFAMILIAR)):
            other.post("/classify", content=content, headers={"Content-Type": "image/jpeg"})
        assert not_accepted() - before - counted == {"unfamiliar": 1}
        text = other.get("/metrics").text
    del reasons[None]
    assert counted == reasons
    assert 'lipsformer_not_accepted_total{reason="low_score"}' in text
    assert results.pop().keys() == {"name", "problem"}
    for result, answer in zip(results, expected, strict=True):
        assert (result["accepted"], result["reason"]) == (answer.accepted, answer.reason)
        assert result["distance"] == pytest.approx(answer.distance, abs=1e-4)
        assert result["predictions"][0]["score"] == pytest.approx(answer[0].score, abs=1e-4)
    (without,) = post(client, files[0]).json()["results"]
    assert without.keys() == {"name", "predictions"}


def test_one_bad_image_spoils_no_other(client: httpx.Client) -> None:
    good = PHOTOS[0].read_bytes()
    answer = post(
        client, ("a", good), ("b", b"words"), ("c", b""), ("d", good[:2000]), ("e", good), ("f", b"x" * 310_000)
    )
    found = labels(answer)
    assert found[0] == found[4]
    assert found[1:4] == ["not_an_image", "empty", "damaged"]
    assert found[5] == "too_many_bytes"
    problem = answer.json()["results"][1]["problem"]
    assert (problem["status"], problem["title"]) == (415, "Unsupported Media Type")
    assert "send JPEG" in problem["detail"]


def test_batches_that_are_none_are_refused(client: httpx.Client) -> None:
    good = PHOTOS[0].read_bytes()

    def refusal(response: httpx.Response) -> tuple[int, Any]:
        return response.status_code, response.json()["reason"]

    assert refusal(post(client, *[(str(n), b"x") for n in range(65)])) == (413, "too_many_images")
    assert refusal(post(client, ("a", good), top_k="none")) == (400, "bad_top_k")
    assert refusal(client.post("/classify_batch", files={"photos": good})) == (400, "missing_field")
    assert refusal(client.post("/classify_batch", files={"images": (None, "http://x/")})) == (422, "not_a_file")
    assert refusal(client.post("/classify_batch", content=good, headers={"Content-Type": "image/jpeg"}))[0] == 415
    assert refusal(post(client, ("a", b"x" * 1_300_000))) == (413, "too_many_bytes")
    assert client.get("/classify_batch").status_code == 405


def test_with_one_slot_batches_and_single_images_alternate(trained: Trained) -> None:
    """A batch needs only one slot, so a full server refuses whole requests and never a part of one."""
    good = PHOTOS[0].read_bytes()
    with app_running(trained.bundle, MAX_PENDING="1") as app, httpx.Client(base_url=app.url, timeout=60) as client:

        def ask(number: int) -> httpx.Response:
            if number % 2:
                return client.post("/classify", content=good, headers={"Content-Type": "image/jpeg"})
            return post(client, *[("a", good)] * 8)

        with concurrent.futures.ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(ask, range(30)))
        assert {answer.status_code for answer in answers} == {200, 503}
        for answer in answers:
            if answer.status_code == 503:
                assert int(answer.headers["retry-after"]) >= 1
            elif "results" in answer.json():
                assert len(set(labels(answer))) == 1


def test_a_batch_over_the_deadline_gets_the_results_so_far(trained: Trained) -> None:
    slow = io.BytesIO()
    Image.new("RGB", (7000, 7000)).save(slow, "PNG")
    with (
        app_running(trained.bundle, DEADLINE="2", THREADS="1", DECODE_TIMEOUT="30") as app,
        httpx.Client(base_url=app.url, timeout=60) as client,
    ):
        found = labels(post(client, ("a", PHOTOS[0].read_bytes()), *[("b", slow.getvalue())] * 30))
        assert found[0] in trained.classes
        assert found[-1] == "deadline_exceeded"
        until_answered = time.monotonic() + 60  # the decoder finishes the image that it has begun
        while labels(post(client, ("a", PHOTOS[0].read_bytes()))) != found[:1]:
            assert time.monotonic() < until_answered
