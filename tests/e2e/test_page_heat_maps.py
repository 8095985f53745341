"""The web page's heat maps, in a real browser in front of a real application."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect

from lipsformer import load_predictor
from lipsformer.evaluation.heat_maps.explainer import explainer_of
from lipsformer.evaluation.heat_maps.photos import drawing
from lipsformer.images.samples import SAMPLES
from tests.support.http.browser import answer_with, card, choose, watched_page
from tests.support.http.server import app_running
from tests.support.trained import Trained

pytestmark = pytest.mark.slow

PEAR = SAMPLES / "Kaiser.jpg"


def button_of(page: Page) -> Locator:
    return card(page, PEAR.name).get_by_role("button", name=f"Show what spoke for it: {PEAR.name}")


def drawn(page: Page) -> np.ndarray:
    """The pixels of the card's canvas, (S, S, 3)."""
    url = card(page, PEAR.name).locator("canvas").evaluate("canvas => canvas.toDataURL()")
    with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as image:
        return np.asarray(image.convert("RGB"), float)


def test_the_page_draws_what_the_command_draws(browser: Browser, explained: Trained) -> None:
    predictor = load_predictor(explained.checkpoint)
    best = predictor.predict([PEAR], 1)[0][0]
    heat_map = explainer_of(predictor).explain(predictor.prepare(PEAR), best.index)
    wanted = drawing(predictor.preprocessing, PEAR.read_bytes(), heat_map, 480)[1].astype(float)
    with app_running(explained.bundle) as app, watched_page(browser) as watched:
        page, asked = watched.page, list[str]()
        page.on("request", lambda request: asked.append(request.url))
        page.goto(app.url)
        choose(page, PEAR)
        canvas, image = (card(page, PEAR.name).locator(tag) for tag in ("canvas", "img"))
        button = button_of(page)
        expect(button).to_have_attribute("aria-pressed", "false")
        expect(canvas).to_be_hidden()
        assert not [url for url in asked if "explain=1" in url]  # nobody has asked for it
        for _ in range(2):
            button.click()
            expect(button).to_have_attribute("aria-pressed", "true")
            expect(canvas).to_be_visible()
            expect(image).to_be_hidden()
            expect(card(page, PEAR.name)).to_contain_text("against it")
            found = drawn(page)
            assert np.abs(found - wanted).mean() < 6  # of 255; browsers resize otherwise than Pillow
            hues = [(pixels[..., 0] - pixels[..., 2]).ravel() for pixels in (found, wanted)]
            assert np.corrcoef(*hues)[0, 1] > 0.98
            button.click()
            expect(image).to_be_visible()
            expect(canvas).to_be_hidden()
        assert len([url for url in asked if "explain=1" in url]) == 1
        assert watched.breaches(app.url) == []


def test_a_server_that_cannot_explain_now_says_why(browser: Browser, explained: Trained) -> None:
    problem = {"title": "x", "status": 503, "detail": "8 heat maps are pending already", "reason": "overloaded"}
    with app_running(explained.bundle) as app, watched_page(browser) as watched:
        page = watched.page
        page.goto(app.url)
        choose(page, PEAR)
        page.route("**/classify*", answer_with(503, problem, **{"Retry-After": "1"}), times=1)
        button_of(page).click()
        expect(page.get_by_role("alert")).to_contain_text("8 heat maps are pending already")
        expect(button_of(page)).to_have_attribute("aria-pressed", "false")
        button_of(page).click()
        expect(card(page, PEAR.name).locator("canvas")).to_be_visible()
        expect(page.get_by_role("alert")).to_be_hidden()


def test_without_heat_maps_there_is_no_button(page: Page) -> None:
    choose(page, PEAR)
    expect(card(page, PEAR.name).get_by_role("meter").first).to_be_visible()
    expect(button_of(page)).to_have_count(0)
