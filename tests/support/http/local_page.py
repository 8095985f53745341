"""The page without a server: its files over a real socket, and the answers that it shows."""

from __future__ import annotations

import contextlib
import functools
import http.server
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from lipsformer.inference.page import MEDIA_TYPES

from .running import running

if TYPE_CHECKING:
    from playwright.sync_api import Page

__all__ = ["answers", "folder_server", "loaded"]

SETTLED = ".card:is([data-state=done], [data-state=failed])"
READ = """() => [...document.querySelectorAll(".card")].map((card) => ({
  name: card.ariaLabel,
  title: card.querySelector(".title").textContent,
  detail: card.querySelector(".detail").textContent,
  scores: [...card.querySelectorAll(".meter")].map((meter) => [meter.ariaLabel, meter.ariaValueNow / 100]),
}))"""


class Handler(http.server.SimpleHTTPRequestHandler):
    extensions_map: ClassVar[dict[str, str]] = {
        **MEDIA_TYPES,
        ".mjs": "text/javascript",
        "": "application/octet-stream",
    }

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@contextlib.contextmanager
def folder_server(folder: Path) -> Iterator[str]:
    """A server of the files in a folder, without any headers that a static host would not send; gives its URL."""
    handler = functools.partial(Handler, directory=str(folder))
    with running(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)) as url:
        yield url


def loaded(page: Page, url: str, timeout: float = 60_000) -> None:
    """Opens the page and waits for its model."""
    page.goto(url)
    page.locator("#model").wait_for(timeout=timeout)


def answers(page: Page, files: dict[str, bytes], timeout: float = 120_000) -> dict[str, dict[str, Any]]:
    """What the page shows for at most 64 files: by name, the title, the detail and the scores of the best classes."""
    page.set_input_files(
        "#files", [{"name": name, "mimeType": "", "buffer": content} for name, content in files.items()]
    )
    page.locator(SETTLED).nth(len(files) - 1).wait_for(state="attached", timeout=timeout)
    found = {card["name"]: {**card, "scores": dict(card["scores"])} for card in page.evaluate(READ)}
    if len(files) > 1:
        page.locator("#clear").click()
    else:
        page.locator(".remove").click()
    return found
