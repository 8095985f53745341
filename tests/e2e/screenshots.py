"""Take screenshots of a running server's page with sample photos: `python -m tests.e2e.screenshots URL FOLDER`.

docs/page-light.png and docs/page-dark.png are made with it, of a server of the model that `lipsformer train fruit
--recipe fruit` trains.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, expect, sync_playwright

from lipsformer.images.samples import SAMPLES
from tests.support.http.browser import ARGUMENTS, CHROMIUM, choose

NOTE = {"name": "shopping-list.txt", "mimeType": "text/plain", "buffer": b"pears, oranges"}
EXPLAINED = "explained"  # only if the server's bundle has heat maps
FILES = {  # in the order of choosing: the page shows the newest first
    "empty": [],
    "one": [SAMPLES / "Watermelon.jpg"],
    EXPLAINED: [SAMPLES / "Watermelon.jpg"],
    f"several-{EXPLAINED}": [SAMPLES / f"{name}.jpg" for name in ("Orange", "Conference")],
    "page": [
        *(SAMPLES / f"{name}.jpg" for name in ("Orange", "Watermelon")),
        NOTE,
        *(SAMPLES / f"{name}.jpg" for name in ("Satsumas", "Conference")),
    ],
}
SCREENS = {
    "": {"viewport": {"width": 1280, "height": 840}},
    "phone-": {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True},
}


def photograph(browser: Browser, url: str, folder: Path) -> None:
    """Writes SCREEN-STATE-SCHEME.png for all of them into `folder`, which is created."""
    folder.mkdir(parents=True, exist_ok=True)
    for screen, options in SCREENS.items():
        for scheme in ("light", "dark"):
            context = browser.new_context(color_scheme=scheme, reduced_motion="reduce", **options)
            for state, files in FILES.items():
                page = context.new_page()
                page.goto(url)
                expect(page.locator("#model")).to_be_visible()
                for file in files:  # one by one, as batches would make their times incomparable
                    choose(page, file)
                    expect(page.locator(".card:is([data-state=waiting], [data-state=busy])")).to_have_count(0)
                if state.endswith(EXPLAINED):
                    for button in (
                        page.get_by_role("button", name="Show what spoke for it").locator("visible=true").all()
                    ):
                        button.click()
                        expect(button).to_have_attribute("aria-pressed", "true")
                image = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
                few = image.quantize(palette=image.quantize(256, kmeans=1))  # dithered: a third of the bytes
                few.save(folder / f"{screen}{state}-{scheme}.png", optimize=True)
                page.close()
            context.close()


if __name__ == "__main__":
    with sync_playwright() as playwright:
        photograph(playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS), sys.argv[1], Path(sys.argv[2]))
