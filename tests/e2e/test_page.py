"""The web page, in a real browser in front of a real server."""

from __future__ import annotations

import io
import math
import os
import re
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, Route, expect

from lipsformer import load_predictor
from lipsformer.export import ExportSettings, export_bundle
from lipsformer.images.samples import SAMPLES
from tests.support.http.browser import answer_with, card, choose, classified, drop, paste, watched_page
from tests.support.http.server import app_running
from tests.support.models.acceptance import ACCEPTED, LOW_SCORE, UNFAMILIAR
from tests.support.trained import Trained

pytestmark = pytest.mark.slow

PEAR = SAMPLES / "Kaiser.jpg"
ORANGE = SAMPLES / "Orange.jpg"
SETTLED = ".card:is([data-state=done], [data-state=failed])"


def shows(page: Page, photo: Path, bundle: Path, name: str | None = None, heading: str | None = None) -> None:
    """The card of a photo has the classes and scores, in order, that the bundle gives without any server.

    Its heading is the best class, if not another one is given.
    """
    shown = card(page, name or photo.name)
    wanted = load_predictor(bundle).predict([photo], 5)[0]
    expect(shown.get_by_role("heading")).to_have_text(heading or wanted[0].label)
    meters = shown.get_by_role("meter")
    expect(meters).to_have_count(5)
    for meter, prediction in zip(meters.all(), wanted, strict=True):
        expect(meter).to_have_accessible_name(prediction.label)
        assert float(meter.get_attribute("aria-valuenow")) == pytest.approx(prediction.score * 100, abs=0.1)


def test_a_dropped_photo_gets_its_label_bars_and_timing(page: Page, trained: Trained) -> None:
    drop(page, PEAR)
    shows(page, PEAR, trained.bundle)
    shown = card(page, PEAR.name)
    details = shown.locator("summary")
    expect(details).to_contain_text("ms")
    expect(details).to_contain_text("CPU")
    expect(shown.get_by_text("Decode")).to_be_hidden()
    details.click()
    for stage in ("Network", "Receive", "Decode", "Wait", "Model"):
        expect(shown.get_by_text(stage, exact=True).first).to_be_visible()
    assert page.evaluate("[liveUrls.size, localStorage.length, sessionStorage.length, document.cookie]") == [
        0,
        0,
        0,
        "",
    ]
    assert page.context.storage_state() == {"cookies": [], "origins": []}


def test_the_page_says_the_certified_radius_and_never_a_larger_one(browser: Browser, tmp_path: Path) -> None:
    name, bundle = "lipsformer_cifar10_certified", tmp_path / "bundle"
    export_bundle(name, bundle, ExportSettings(max_batch=2, parity_images=2))
    (own,) = load_predictor(name, "cpu").predict([PEAR])
    with app_running(bundle) as app, watched_page(browser) as watched:
        page = watched.page
        page.goto(app.url)
        choose(page, PEAR)
        sentence = card(page, PEAR.name).get_by_text("can change this answer")
        expect(sentence).to_be_visible()
        found = re.search(r"smaller than ([0-9.]+) \(L2", sentence.inner_text())
    assert found is not None
    assert own.certified_radius is not None
    assert math.floor(own.certified_radius * 1000 - 1) / 1000 <= float(found[1]) <= own.certified_radius


def test_several_chosen_photos_get_their_own_answers_and_one_may_fail(
    page: Page, trained: Trained, tmp_path: Path
) -> None:
    note = tmp_path / "note.txt"
    note.write_text("not a photo")
    choose(page, PEAR, note, ORANGE)
    expect(page.locator(SETTLED)).to_have_count(3)
    shows(page, PEAR, trained.bundle)
    shows(page, ORANGE, trained.bundle)
    expect(card(page, "note.txt").get_by_role("heading")).to_have_text("This is not an image")
    expect(card(page, "note.txt")).to_contain_text("JPEG, PNG")
    expect(page.get_by_text("2 of 3 answered, 1 failed")).to_be_visible()
    page.get_by_role("button", name="Remove all").click()
    expect(page.get_by_role("article")).to_have_count(0)
    expect(page.get_by_role("button", name="Choose photos")).to_be_focused()


def test_a_pasted_picture_is_classified(page: Page, trained: Trained) -> None:
    png = io.BytesIO()
    Image.open(PEAR).save(png, "PNG")
    paste(page, png.getvalue())
    shows(page, PEAR, trained.bundle, "image.png")


def test_a_dropped_url_is_refused(page: Page) -> None:
    page.evaluate("""() => {
        const transfer = new DataTransfer();
        transfer.setData("text/uri-list", "http://example.com/photo.jpg");
        document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true }));
    }""")
    expect(page.get_by_role("alert")).to_contain_text("URLs are never fetched")
    choose(page, PEAR)
    expect(page.get_by_role("alert")).to_be_hidden()


def test_an_answer_that_is_not_accepted_is_told_from_one_that_is(browser: Browser, choosy: Trained) -> None:
    with app_running(choosy.bundle) as app, watched_page(browser) as watched:
        page = watched.page
        page.goto(app.url)
        choose(page, ACCEPTED, LOW_SCORE, UNFAMILIAR)
        expect(page.locator(SETTLED)).to_have_count(3)
        shows(page, ACCEPTED, choosy.bundle)
        expect(card(page, ACCEPTED.name)).to_contain_text("This looks like")
        for photo, sentence in (
            (LOW_SCORE, "It looks most like {}, but the score is too low."),
            (UNFAMILIAR, "It looks unlike the photos this model was trained on; most like {}."),
        ):
            shown, best = card(page, photo.name), load_predictor(choosy.bundle).predict([photo], 1)[0][0].label
            shows(page, photo, choosy.bundle, heading="Not sure")
            expect(shown.locator(".detail")).to_have_text(sentence.format(best))
            expect(shown.locator(".detail")).to_be_visible()
            expect(shown.get_by_text("This looks like")).to_have_count(0)
            expect(page.get_by_role("log")).to_contain_text(f"{photo.name}: Not sure. {sentence.format(best)}")
        assert watched.breaches(app.url) == []


def test_heic_is_refused_with_advice(page: Page, tmp_path: Path) -> None:
    photo = tmp_path / "IMG_0001.HEIC"
    photo.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64))
    choose(page, photo)
    expect(card(page, photo.name)).to_contain_text("Most Compatible")
    expect(card(page, photo.name).locator(".kind")).to_have_text("HEIC")


def test_a_folder_is_refused_in_words(page: Page, tmp_path: Path) -> None:
    folder = tmp_path / "holiday"
    folder.mkdir()
    drop(page, folder)
    expect(card(page, "holiday").get_by_role("heading")).to_have_text("This file cannot be read")


def test_a_file_over_the_limit_is_refused_before_it_is_sent(page: Page, tmp_path: Path) -> None:
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.url))
    big = tmp_path / "big.jpg"
    big.write_bytes(os.urandom(400_000))
    choose(page, big)
    expect(card(page, "big.jpg").get_by_role("heading")).to_have_text("This file is too large")
    expect(card(page, "big.jpg")).to_contain_text("400 kB, and this server takes at most 300 kB")
    assert not [url for url in sent if "classify" in url]


def test_the_reason_of_the_server_is_told_in_words(page: Page) -> None:
    wide = io.BytesIO()
    Image.new("L", (2000, 1000)).save(wide, "PNG")
    choose(page, {"name": "wide.png", "mimeType": "image/png", "buffer": wide.getvalue()})
    expect(card(page, "wide.png").get_by_role("heading")).to_have_text("This image has too many pixels")
    expect(card(page, "wide.png").get_by_role("button", name="Try again")).to_be_hidden()


def test_a_busy_server_is_asked_again_when_it_says(page: Page, trained: Trained) -> None:
    problem = {"title": "Service Unavailable", "status": 503, "detail": "busy", "reason": "overloaded"}
    page.route("**/classify*", answer_with(503, problem, **{"Retry-After": "1"}), times=1)
    choose(page, PEAR)
    expect(card(page, PEAR.name)).to_contain_text("Trying again in 1 s (attempt 2 of 5)")
    shows(page, PEAR, trained.bundle)


def test_a_server_that_is_busy_for_long_is_left_alone(page: Page) -> None:
    problem = {"title": "Service Unavailable", "status": 503, "detail": "64 images wait", "reason": "overloaded"}
    page.route("**/classify*", answer_with(503, problem, **{"Retry-After": "3600"}))
    choose(page, PEAR)
    expect(card(page, PEAR.name).get_by_role("heading")).to_have_text("The server is busy")
    expect(card(page, PEAR.name)).to_contain_text("64 images wait.")


def test_a_failing_server_is_explained_and_retried(page: Page, trained: Trained) -> None:
    page.route("**/classify*", lambda route: route.abort("connectionrefused"), times=1)
    choose(page, PEAR)
    shown = card(page, PEAR.name)
    expect(shown.get_by_role("heading")).to_have_text("The server does not answer")
    page.route("**/classify*", answer_with(502, "<html>Bad Gateway</html>"), times=1)
    shown.get_by_role("button", name="Try again").click()
    expect(shown).to_contain_text("status 502 Bad Gateway")
    shown.get_by_role("button", name="Try again").click()
    shows(page, PEAR, trained.bundle)


def test_without_a_server_the_page_says_so(browser: Browser, server: str) -> None:
    with watched_page(browser) as watched:
        watched.page.route("**/info", lambda route: route.abort("connectionrefused"))
        watched.page.goto(server)
        expect(watched.page.get_by_role("alert")).to_contain_text("The server does not answer")


def test_a_removed_photo_is_not_asked_about_any_longer(page: Page) -> None:
    page.route("**/classify*", lambda route: None)  # never answered
    choose(page, PEAR)
    expect(card(page, PEAR.name)).to_have_attribute("data-state", "busy")
    with page.expect_event("requestfailed") as failed:
        page.get_by_role("button", name=f"Remove {PEAR.name}").click()
    assert failed.value.failure == "net::ERR_ABORTED"
    expect(page.get_by_role("article")).to_have_count(0)


def test_sixty_four_photos_fit_and_four_are_asked_about_at_a_time(page: Page) -> None:
    held: list[Route] = []
    page.route("**/classify*", lambda route: held.append(route))
    small = {"mimeType": "image/jpeg", "buffer": PEAR.read_bytes()}
    choose(page, *({"name": f"{number}.jpg", **small} for number in range(66)))
    expect(page.get_by_role("article")).to_have_count(64)
    expect(page.get_by_role("alert")).to_contain_text("64 photos fit here at a time; 2 more did not")
    expect(page.locator(".card[data-state=busy]")).to_have_count(4)
    assert len(held) == 4
    answered = 0
    while answered < 64:
        held.pop().fulfill(json=classified("pear"))
        answered += 1
        expect(page.locator(SETTLED)).to_have_count(answered)
        assert len(held) <= 4
    expect(page.get_by_text("64 of 64 answered")).to_be_visible()
