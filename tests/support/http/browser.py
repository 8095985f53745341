"""Chromium, driven: pages that note everything that they should not do."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, Route

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

# `--no-sandbox`, because CI is root in a container, where Chromium's sandbox cannot be; the pages are our own.
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip

# Notes breaches of the content security policy, and object URLs that are alive.
NOTES = """
window.violations = [];
window.liveUrls = new Set();
addEventListener("securitypolicyviolation", ({ violatedDirective, blockedURI }) => {
  violations.push(`${violatedDirective} ${blockedURI}`);
});
const { createObjectURL, revokeObjectURL } = URL;
URL.createObjectURL = (object) => {
  const url = createObjectURL(object);
  liveUrls.add(url);
  return url;
};
URL.revokeObjectURL = (url) => {
  liveUrls.delete(url);
  revokeObjectURL(url);
};
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Watched:
    """A page, with the console's errors, its uncaught exceptions and the hosts that it asked."""

    page: Page
    complaints: list[str]
    hosts: set[str]

    def breaches(self, url: str) -> list[str]:
        """What the page of the server at `url` did that it should not have done."""
        strangers = sorted(self.hosts - {urlsplit(url).netloc, ""})  # a blob: has no host
        return [*self.complaints, *self.page.evaluate("violations"), *(f"asked {host}" for host in strangers)]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The installed Chromium, without a window and with a fresh profile.

    Of a module, because while it runs, no test on this thread can call `asyncio.run`.
    """
    if CHROMIUM is None:
        pytest.skip("no Chromium: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        try:
            yield chromium
        finally:
            chromium.close()


@pytest.fixture
def page(browser: Browser, server: str) -> Iterator[Page]:
    """The page of the server of the small bundle, which must not do anything that it should not do."""
    with watched_page(browser) as watched:
        watched.page.goto(server)
        watched.page.locator("#model").wait_for()
        yield watched.page
        assert watched.breaches(server) == []


@contextlib.contextmanager
def watched_page(browser: Browser, **options: Any) -> Iterator[Watched]:
    """An empty page in a context of its own: no cookies, cache or permissions of other tests."""
    context = browser.new_context(**options)
    context.set_default_timeout(15_000)
    context.add_init_script(NOTES)
    page = context.new_page()
    watched = Watched(page=page, complaints=[], hosts=set())

    def hear(message: ConsoleMessage) -> None:
        # The browser itself reports every answer from 400 on; the page tells these in its own words.
        if message.type in ("error", "warning") and not message.text.startswith("Failed to load resource"):
            watched.complaints.append(message.text)

    page.on("filechooser", lambda _: None)  # begins to catch dialogs now: on demand it may come too late for a key
    page.on("console", hear)
    page.on("pageerror", lambda error: watched.complaints.append(str(error)))
    page.on(
        "request", lambda request: request.url.startswith("blob:") or watched.hosts.add(urlsplit(request.url).netloc)
    )
    try:
        yield watched
    finally:
        page.unroute_all(behavior="ignoreErrors")
        context.close()


def choose(page: Page, *files: Any) -> None:
    """Chooses files, as the dialog of "Choose photos" does."""
    page.set_input_files("#files", list(files))


def drop(page: Page, *paths: Path) -> None:
    """Drags files from the desktop over the page, and lets go, as the operating system tells the browser."""
    session = page.context.new_cdp_session(page)
    data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        session.send("Input.dispatchDragEvent", {"type": kind, "x": 20, "y": 20, "data": data})
    session.detach()


def paste(page: Page, png: bytes) -> None:
    """Puts an image on the clipboard and presses Ctrl V."""
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    copy = """async (text) => {
        const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
        await navigator.clipboard.write([new ClipboardItem({ "image/png": new Blob([bytes], { type: "image/png" }) })]);
    }"""
    page.evaluate(copy, base64.b64encode(png).decode())
    page.keyboard.press("Control+V")


def card(page: Page, name: str) -> Locator:
    """What is shown of the photo of this name."""
    return page.get_by_role("article", name=name, exact=True)


def answer_with(status: int, content: Any, **headers: str) -> Callable[[Route], None]:
    """An answer for `page.route`, where a test needs one that the real server does not give at will."""
    body = content if isinstance(content, str) else json.dumps(content)
    return lambda route: route.fulfill(status=status, body=body, headers=headers)


def classified(*labels: str) -> dict[str, Any]:
    """What POST /classify answers, made up."""
    scores = (0.9, 0.05, 0.03, 0.015, 0.0001)[: len(labels)]
    pairs = zip(labels, scores, strict=True)
    return {
        "predictions": [{"label": label, "index": 0, "score": score} for label, score in pairs],
        "model": "a_model", "provider": "CPUExecutionProvider", "precision": "fp32", "batch": 1,
        "timing_ms": {"read": 1.0, "decode": 2.0, "queue": 0.5, "infer": 3.0, "total": 7.0}, "request_id": "abc",
    }  # fmt: skip
