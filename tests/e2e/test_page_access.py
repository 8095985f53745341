"""The web page: keyboards, screen readers, small screens, odd names, and nothing loaded from elsewhere."""

from __future__ import annotations

import io
import json
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import ExifTags, Image
from playwright.sync_api import Browser, Error, Page, Route, expect

from lipsformer.images.samples import SAMPLES
from tests.support.http.browser import answer_with, card, choose, classified, watched_page
from tests.support.http.server import KEY, Keyed

pytestmark = pytest.mark.slow

PEAR = SAMPLES / "Kaiser.jpg"
ORANGE = SAMPLES / "Orange.jpg"
TOUCH = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
STICKING_OUT = """() => [...document.querySelectorAll("*")]
    .filter((part) => part.getBoundingClientRect().right > innerWidth)
    .map((part) => `${part.tagName} ${part.className}`)"""
# The contrast (WCAG 2.2) of a part's text with its card.
CONTRAST = """(part) => {
    const luminance = (color) => color.match(/[\\d.]+/g).slice(0, 3)
        .map((value) => value / 255)
        .map((value) => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
        .reduce((sum, value, index) => sum + value * [0.2126, 0.7152, 0.0722][index], 0);
    const ground = getComputedStyle(part.closest(".card")).backgroundColor;
    const [dark, light] = [getComputedStyle(part).color, ground].map(luminance).sort((a, b) => a - b);
    return (light + 0.05) / (dark + 0.05);
}"""
LOOK = """(part) => {
    const { color, backgroundColor, fontWeight } = getComputedStyle(part);
    return [color, backgroundColor, fontWeight];
}"""
REFUSED = {"accepted": False, "reason": "low_score", "distance": 0.9}
HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft" * 3,
    "شاحنة لنقل البضائع الثقيلة",
    "a label of many short words, as ImageNet has them, tench, Tinca tinca, and then still some more of them",
    "\u202egnp.exe",
]


def test_a_keyboard_is_enough(page: Page) -> None:
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Choose photos")).to_be_focused()
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    for key, photo in (("Space", ORANGE), ("Enter", PEAR)):
        with page.expect_file_chooser() as dialog:
            page.keyboard.press(key)
        assert dialog.value.is_multiple()
        dialog.value.set_files(photo)
        expect(card(page, photo.name)).to_have_attribute("data-state", "done")
    shown = card(page, PEAR.name)
    clear, remove = page.get_by_role("button", name="Remove all"), shown.get_by_role("button", name="Remove")
    for control in (clear, remove, shown.locator("summary")):
        page.keyboard.press("Tab")
        expect(control).to_be_focused()
    page.keyboard.press("Enter")
    expect(shown.get_by_text("Decode", exact=True)).to_be_visible()
    page.keyboard.press("Tab")
    expect(shown.get_by_role("button", name="Copy as curl")).to_be_focused()
    for key in ("Shift+Tab", "Shift+Tab", "Enter"):
        page.keyboard.press(key)
    expect(shown).to_have_count(0)
    expect(page.get_by_role("button", name=f"Remove {ORANGE.name}")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Choose photos")).to_be_focused()


def test_a_screen_reader_is_told_everything(page: Page, tmp_path: Path) -> None:
    note = tmp_path / "note.txt"
    note.write_text("not a photo")
    page.route("**/classify*", answer_with(200, classified("pear", "apple")), times=1)
    choose(page, PEAR)
    expect(card(page, PEAR.name)).to_have_attribute("data-state", "done")
    choose(page, note)
    expect(card(page, "note.txt")).to_have_attribute("data-state", "failed")
    expect(page.get_by_role("log")).to_match_aria_snapshot("""
        - log "Progress":
          - paragraph: Looking at Kaiser.jpg
          - paragraph: "Kaiser.jpg: pear, 90.0 %"
          - paragraph: Looking at note.txt
          - paragraph: /note.txt. This is not an image. .*JPEG, PNG/
    """)
    expect(page.get_by_role("main")).to_match_aria_snapshot("""
        - main:
          - heading "What is in your photo?" [level=1]
          - paragraph: /This model tells 14 classes apart/
          - region "Add photos":
            - button /Choose photos/
          - region "Your photos":
            - paragraph: 1 of 2 answered, 1 failed
            - button "Remove all"
            - list:
              - listitem:
                - article "note.txt":
                  - paragraph: note.txt 11 bytes
                  - button "Remove note.txt"
                  - heading "This is not an image" [level=2]
              - listitem:
                - article "Kaiser.jpg":
                  - img "Your photo Kaiser.jpg"
                  - button "Remove Kaiser.jpg"
                  - paragraph: This looks like
                  - heading "pear" [level=2]
                  - list "Most likely classes":
                    - listitem:
                      - meter "pear"
                    - listitem:
                      - meter "apple"
                  - group: 7.0 ms, fp32 on CPU
                  - button /Copy as curl/
    """)
    expect(card(page, PEAR.name).get_by_role("meter").first).to_have_attribute("aria-valuetext", "90.0 %")


def test_an_answer_that_is_not_accepted_is_readable_and_quieter(page: Page) -> None:
    page.emulate_media(reduced_motion="reduce")
    for name, judged in (("sure.jpg", {}), ("unsure.jpg", REFUSED)):
        page.route("**/classify*", answer_with(200, classified("pear", "apple") | judged), times=1)
        choose(page, {"name": name, "mimeType": "image/jpeg", "buffer": PEAR.read_bytes()})
        expect(card(page, name)).to_have_attribute("data-state", "done")
    expect(card(page, "unsure.jpg")).to_match_aria_snapshot("""
        - article "unsure.jpg":
          - img "Your photo unsure.jpg"
          - button "Remove unsure.jpg"
          - heading "Not sure" [level=2]
          - paragraph: It looks most like pear, but the score is too low.
          - list "Most likely classes":
            - listitem:
              - meter "pear"
            - listitem:
              - meter "apple"
          - group: 7.0 ms, fp32 on CPU
          - button /Copy as curl/
    """)
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        for part in (".title", ".detail", ".label >> nth=0", ".score >> nth=0", ".label >> nth=1", ".score >> nth=1"):
            assert card(page, "unsure.jpg").locator(part).evaluate(CONTRAST) >= 4.5, (scheme, part)
        for part in (".label", ".score", ".fill"):
            best, last = (
                [card(page, name).locator(part).nth(at).evaluate(LOOK) for name in ("sure.jpg", "unsure.jpg")]
                for at in (0, -1)
            )
            assert best[0] != last[0]
            assert best[1] == last[1]


def test_a_contrast_that_is_too_low_is_seen(page: Page) -> None:
    page.route("**/classify*", answer_with(200, classified("pear") | REFUSED))
    choose(page, PEAR)
    detail = card(page, PEAR.name).locator(".detail")
    expect(detail).to_be_visible()
    page.emulate_media(color_scheme="light")
    detail.evaluate("(part) => (part.style.color = '#777777')")
    assert detail.evaluate(CONTRAST) == pytest.approx(4.48, abs=0.01)  # the well-known gray that just fails on white


@pytest.mark.parametrize("judged", [{}, REFUSED])
@pytest.mark.parametrize("width", [320, 390, 1280])
def test_nothing_overflows_whatever_the_names_are(
    browser: Browser, server: str, width: int, judged: dict[str, Any]
) -> None:
    info = httpx.get(f"{server}/info").json()
    info["classes"] = [f"{HOSTILE[number % len(HOSTILE)]} {number}" for number in range(1000)]
    info["model"]["architecture"] = "a_model_of_a_rather_long_name" * 2
    photo = {"name": "photo" * 40 + ".jpg", "mimeType": "image/jpeg", "buffer": PEAR.read_bytes()}
    with watched_page(browser, viewport={"width": width, "height": 800}) as watched:
        page = watched.page
        page.route("**/info", answer_with(200, info))
        page.route("**/classify*", answer_with(200, classified(*HOSTILE) | judged))
        page.goto(server)
        page.get_by_text("All 1000 classes").click()
        for count in (1, 2):  # one card is laid out differently from several
            choose(page, photo)
            expect(page.locator(".card[data-state=done]")).to_have_count(count)
            page.locator("summary").first.click()
            assert page.evaluate(STICKING_OUT) == []
            assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.locator(".detail bdi" if judged else ".title").first.text_content() == HOSTILE[0]  # not markup
        assert watched.breaches(server) == []
        page.evaluate("document.querySelector('.card').style.width = '2000px'")
        assert "ARTICLE card" in page.evaluate(STICKING_OUT)


def test_a_photo_is_shown_upright_as_the_model_sees_it(page: Page) -> None:
    lying = Image.new("RGB", (60, 40), "orange")
    exif = lying.getexif()
    exif[ExifTags.Base.Orientation] = 6
    photo = io.BytesIO()
    lying.save(photo, "JPEG", exif=exif)
    choose(page, {"name": "lying.jpg", "mimeType": "image/jpeg", "buffer": photo.getvalue()})
    expect(card(page, "lying.jpg")).to_contain_text("40 \u00d7 60")


def test_the_copied_command_gives_the_same_answer(page: Page, tmp_path: Path) -> None:
    photo = tmp_path / 'it\'s $HOME; a photo, "mine".jpg'
    shutil.copy(PEAR, photo)
    choose(page, photo)
    shown = card(page, photo.name)
    expect(shown).to_have_attribute("data-state", "done")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    shown.get_by_role("button", name="Copy as curl").click()
    expect(shown.get_by_role("button", name="Copy as curl")).to_have_text("Copied")
    command = page.evaluate("navigator.clipboard.readText()")
    assert shlex.split(command)[:3] == ["curl", "--data-binary", f"@{photo.name}"]
    if shutil.which("curl"):
        answer = subprocess.run(["sh", "-c", f"{command} --silent"], cwd=tmp_path, capture_output=True, check=True)
        labels = [prediction["label"] for prediction in json.loads(answer.stdout)["predictions"]]
        assert labels == shown.locator(".label").all_text_contents()


def test_without_a_clipboard_the_command_is_shown_and_selected(page: Page) -> None:
    page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    choose(page, PEAR)
    card(page, PEAR.name).get_by_role("button", name="Copy as curl").click()
    expect(card(page, PEAR.name).locator("code")).to_be_visible()
    assert page.evaluate("getSelection().toString()").startswith("curl --data-binary")


def test_only_phones_offer_their_camera(browser: Browser, server: str, page: Page) -> None:
    expect(page.get_by_role("button", name="Take a photo")).to_be_hidden()
    with watched_page(browser, **TOUCH) as watched:
        watched.page.goto(server)
        with watched.page.expect_file_chooser() as dialog:
            watched.page.get_by_role("button", name="Take a photo").tap()
        assert dialog.value.element.get_attribute("capture") == "environment"
        dialog.value.set_files(PEAR)
        expect(card(watched.page, PEAR.name)).to_have_attribute("data-state", "done")
        assert watched.breaches(server) == []


def test_motion_stops_where_it_is_not_wanted(page: Page) -> None:
    page.route("**/classify*", lambda route: None)
    choose(page, PEAR)
    expect(card(page, PEAR.name)).to_have_attribute("data-state", "busy")
    assert page.evaluate("document.getAnimations().length") > 0
    page.emulate_media(reduced_motion="reduce")
    assert page.evaluate("document.getAnimations().length") == 0


def test_dark_is_dark(page: Page) -> None:
    light = "getComputedStyle(document.documentElement).backgroundColor.match(/\\d+/g).every((part) => part > 127)"
    page.emulate_media(color_scheme="light")
    assert page.evaluate(light)
    page.emulate_media(color_scheme="dark")
    assert not page.evaluate(light)


def test_a_browser_can_send_a_key(browser: Browser, keyed: Keyed) -> None:
    with_key = keyed.url.replace("http://", f"http://me:{KEY}@")
    dialog = {"http_credentials": {"username": "me", "password": KEY}}
    for address, options in ((keyed.url, dialog), (with_key, {})):
        with watched_page(browser, **options) as watched:
            watched.page.goto(address)
            choose(watched.page, PEAR)
            expect(card(watched.page, PEAR.name)).to_have_attribute("data-state", "done")
            assert KEY not in watched.page.content()
    with watched_page(browser) as watched, pytest.raises(Error, match="ERR_INVALID_AUTH_CREDENTIALS"):
        watched.page.goto(keyed.url)  # Chromium asks for a password, and nobody is there to give it


def test_the_policy_and_the_watch_stop_what_is_not_the_page(browser: Browser, server: str) -> None:
    with watched_page(browser) as watched:

        def tamper(route: Route) -> None:
            response = route.fetch()
            inline = (
                "<script>document.title = 'owned'</script><img src='http://elsewhere.invalid/x.png'><p style='top:0'>"
            )
            route.fulfill(response=response, body=response.text().replace("</main>", f"</main>{inline}"))

        watched.page.route(server + "/", tamper)
        watched.page.goto(server)
        expect(watched.page).to_have_title("LipsFormer · What is in your photo?")
        breaches = watched.breaches(server)
        for directive in ("script-src-elem inline", "img-src http://elsewhere.invalid/x.png", "style-src-attr inline"):
            assert directive in breaches
        watched.page.evaluate("fetch('http://127.0.0.1:9/').catch(() => {}); console.error('a complaint')")
        assert "a complaint" in watched.breaches(server)


def test_the_watch_sees_requests_to_other_hosts(browser: Browser, server: str) -> None:
    with watched_page(browser) as watched:
        watched.page.route("http://elsewhere.invalid/", answer_with(200, "there"))
        watched.page.goto("http://elsewhere.invalid/")
        assert watched.breaches(server) == ["asked elsewhere.invalid"]
