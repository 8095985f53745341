"""`?explain=1`: the heat map of the best class over HTTP, at a bounded cost, from bundles that have heat maps."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import httpx
import numpy as np
import pytest

from lipsformer import load_predictor
from lipsformer.evaluation.heat_maps.explainer import explainer_of
from lipsformer.images.samples import SAMPLES
from lipsformer.inference.heat_map import HeatMap
from lipsformer.inference.runtimes import Pixels
from lipsformer.serving.pipeline.admission import Overloaded
from lipsformer.serving.pipeline.explanations import MOST_PENDING, Explanations
from lipsformer.serving.pipeline.fault_isolation import FaultError
from tests.support.http.server import App, app_running
from tests.support.trained import Trained

PHOTO = SAMPLES / "Kaiser.jpg"
JPEG = {"Content-Type": "image/jpeg"}


@pytest.fixture(scope="module")
def app(explained: Trained) -> Iterator[App]:
    with app_running(explained.bundle) as app:
        yield app


def post(app: App, **query: object) -> httpx.Response:
    return httpx.post(f"{app.url}/classify", content=PHOTO.read_bytes(), headers=JPEG, params=query, timeout=30)


def test_the_answer_has_the_heat_map_of_the_checkpoint(app: App, explained: Trained) -> None:
    answer = post(app, explain=1, top_k=2).json()
    predictor = load_predictor(explained.checkpoint)
    best = predictor.predict([PHOTO], 1)[0][0]
    wanted = explainer_of(predictor).explain(predictor.prepare(PHOTO), best.index)
    found = answer["explanation"]
    assert found["index"] == answer["predictions"][0]["index"] == best.index
    error = np.linalg.norm(np.subtract(found["map"], wanted.contributions)) / np.linalg.norm(wanted.contributions)
    assert error < 1e-4
    assert found["sum"] == pytest.approx(np.sum(found["map"]), rel=1e-4)
    assert found["stage"] == httpx.get(f"{app.url}/info").json()["heat_maps"]["stage"] == 1
    assert answer["timing_ms"]["explain"] > 0
    assert 'lipsformer_stage_seconds_count{stage="explain"}' in httpx.get(f"{app.url}/metrics").text


def test_only_who_asks_gets_one(app: App) -> None:
    for query in ({}, {"explain": 0}):
        answer = post(app, **query).json()
        assert "explanation" not in answer
        assert "explain" not in answer["timing_ms"]
    for text in ("yes", "", "11"):
        refusal = post(app, explain=text)
        assert (refusal.status_code, refusal.json()["reason"]) == (400, "bad_explain")


def test_a_bundle_without_heat_maps_refuses(trained: Trained) -> None:
    with app_running(trained.bundle) as app:
        refusal = post(app, explain=1)
        assert (refusal.status_code, refusal.json()["reason"]) == (422, "no_heat_maps")
        assert "--explain" in refusal.json()["detail"]
        assert httpx.get(f"{app.url}/info").json()["heat_maps"] is None
        assert post(app, explain=0).status_code == 200


class Scripted:
    """An explainer that waits for `go`, and whose map has `value`."""

    stage = 4

    def __init__(self, value: float = 1.0) -> None:
        self.go = threading.Event()
        self.value = value
        self.calls = 0

    def explain(self, pixels: Pixels, index: int) -> HeatMap:
        assert self.go.wait(10)
        self.calls += 1
        found = np.full((1, 1), self.value, np.float32)
        return HeatMap(contributions=found, index=index, logit=1.0, bias=0.0, stage=4)


def test_few_wait_and_who_leaves_is_not_computed() -> None:
    async def check() -> None:
        explainer, pixels = Scripted(), np.zeros((1, 1, 3), np.uint8)
        explanations = Explanations(explainer)
        pending = [asyncio.create_task(explanations.explain(pixels, index)) for index in range(MOST_PENDING)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="8 heat maps are pending already"):
            await explanations.explain(pixels, 0)
        pending.pop().cancel()
        await asyncio.sleep(0)
        explainer.go.set()
        assert [found.index for found in await asyncio.gather(*pending)] == list(range(MOST_PENDING - 1))
        assert (await explanations.explain(pixels, 7)).index == 7
        await explanations.close()
        assert explainer.calls == MOST_PENDING

    asyncio.run(check())


def test_a_map_that_is_not_finite_fails() -> None:
    async def check() -> None:
        explainer = Scripted(value=float("nan"))
        explainer.go.set()
        explanations = Explanations(explainer)
        with pytest.raises(FaultError):
            await explanations.explain(np.zeros((1, 1, 3), np.uint8), 0)
        await explanations.close()

    asyncio.run(check())
