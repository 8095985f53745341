"""The page without a server, in a real browser that reaches nothing but its files: the answers of `predict`."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
from PIL import Image
from typer.testing import CliRunner

from lipsformer import InputError, load_predictor
from lipsformer.cli.app import app
from lipsformer.export.web.runtime import RUNTIME, SCRIPT, WASM, read_runtime
from lipsformer.images.samples import SAMPLES
from lipsformer.inference.predictor import Predictor
from tests.support.http.browser import watched_page
from tests.support.http.local_page import answers, folder_server, loaded
from tests.support.images.files import encode, exif_orientation
from tests.support.images.profiles import SWAPPED, matrix_profile
from tests.support.trained import Trained

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Route

REPOSITORY = Path(__file__).parents[2]
PACKAGE = REPOSITORY / ".venv" / f"{RUNTIME.replace('@', '-')}.tgz"  # where `make` puts it
PEAR = SAMPLES / "Anjou.jpg"


@pytest.fixture(scope="module")
def package() -> Path:
    if not PACKAGE.is_file():
        pytest.skip(f"no {PACKAGE}: `make` fetches it if there is npm")
    return PACKAGE


@pytest.fixture(scope="module")
def site(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of the included model, as the command writes it."""
    folder = tmp_path_factory.mktemp("page") / "site"
    done = CliRunner().invoke(app, ["export", "lipsformer_cifar10", "--web", str(folder), "--web-runtime", str(package),
                                    "--parity-images", "2", "--max-batch", "2"])  # fmt: skip
    assert done.exit_code == 0, done.output
    size = sum(file.stat().st_size for file in folder.iterdir()) - (folder / "manifest.json").stat().st_size
    assert json.loads((folder / "manifest.json").read_text())["bytes"] == size
    assert f"Page: {folder}, {size / 1e6:.1f} MB" in done.stdout.replace("\n", "")
    return folder


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return load_predictor("lipsformer_cifar10", "cpu")


@pytest.fixture(scope="module")
def local_page(browser: Browser, site: Path) -> Iterator[Page]:
    """The loaded page, in a browser that answers no request to another address, and then none at all."""
    with folder_server(site) as url, watched_page(browser) as watched:

        def only_ours(route: Route) -> None:
            route.continue_() if urlsplit(route.request.url).netloc == urlsplit(url).netloc else route.abort()

        watched.page.route(re.compile("^(?!blob:)"), only_ours)
        loaded(watched.page, url)
        watched.page.context.set_offline(True)
        yield watched.page
        assert watched.breaches(url) == []


def odd_photos() -> dict[str, bytes]:
    """The pear: turned, transparent, in another color space, as other formats, and in other shapes."""
    with Image.open(PEAR) as photo:
        pear = photo.convert("RGB")
    turned = pear.transpose(Image.Transpose.ROTATE_90)
    clear = pear.copy()
    clear.putalpha(Image.linear_gradient("L").resize(pear.size))
    swapped = Image.merge("RGB", pear.split()[::-1])
    icc = matrix_profile(SWAPPED)
    return {
        "turned.jpg": encode("JPEG", turned, quality=95, exif=exif_orientation(6)),
        "clear.png": encode("PNG", clear),
        "profile.png": encode("PNG", swapped, icc_profile=icc),
        "gray.jpg": encode("JPEG", pear.convert("L"), quality=95),
        "small.png": encode("PNG", pear.resize((20, 13))),
        "tall.png": encode("PNG", pear.resize((60, 330))),
        "wide.jpg": encode("JPEG", pear.resize((1203, 331)), quality=95),
        "photo.webp": encode("WEBP", pear, quality=90),
        "large.jpg": encode("JPEG", pear.resize((2000, 1504)), quality=90),
        "large-odd.jpg": encode("JPEG", pear.resize((1999, 1503)), quality=90),
        "large-444.jpg": encode("JPEG", pear.resize((2000, 1504)), quality=90, subsampling=0),
        "large-422.jpg": encode("JPEG", pear.resize((2000, 1504)), quality=90, subsampling=1),
        "large-gray.jpg": encode("JPEG", pear.convert("L").resize((2000, 1504)), quality=90),
        "large-profile.jpg": encode("JPEG", swapped.resize((2000, 1504)), quality=90, icc_profile=icc),
        **{
            f"large-orientation-{number}.jpg": encode(
                "JPEG", pear.resize((2000, 1504)), quality=90, exif=exif_orientation(number)
            )
            for number in range(2, 9)
        },
    }


def test_it_answers_as_predict_does(local_page: Page, predictor: Predictor) -> None:
    files = odd_photos() | {path.name: path.read_bytes() for path in sorted(SAMPLES.glob("*.jpg"))[:5]}
    shown = answers(local_page, files)
    for name, content in files.items():
        predicted = predictor.predict([content], top_k=10)[0]
        scores = {entry.label: entry.score for entry in predicted}
        assert shown[name]["title"] == predicted[0].label, name
        for label, score in shown[name]["scores"].items():
            assert score == pytest.approx(scores[label], abs=0.02), name


def test_it_doubts_what_the_rule_does_not_accept(
    browser: Browser, package: Path, choosy: Trained, tmp_path: Path
) -> None:
    done = CliRunner().invoke(app, ["export", str(choosy.checkpoint), "--web", str(tmp_path / "site"), "--web-runtime",
                                    str(package), "--parity-images", "2", "--max-batch", "2"])  # fmt: skip
    assert done.exit_code == 0, done.output
    predictor = load_predictor(choosy.checkpoint, "cpu")
    photos = {path.name: path.read_bytes() for path in sorted(SAMPLES.glob("*.jpg"))}
    with folder_server(tmp_path / "site") as url, watched_page(browser) as watched:
        loaded(watched.page, url)
        shown = answers(watched.page, photos)
        assert watched.breaches(url) == []
    details = {
        None: "",
        "low_score": "It looks most like {}, but the score is too low.",
        "unfamiliar": "It looks unlike the photos this model was trained on; most like {}.",
    }
    answered = {name: predictor.predict([content], 1)[0] for name, content in photos.items()}
    assert {answer.reason for answer in answered.values()} == set(details)
    for name, answer in answered.items():
        assert shown[name]["title"] == ("Not sure" if answer.reason else answer[0].label), name
        assert shown[name]["detail"] == details[answer.reason].format(answer[0].label), name


def test_a_file_that_is_no_image(local_page: Page) -> None:
    shown = answers(local_page, {"notes.txt": b"pears, oranges"})
    assert shown["notes.txt"]["title"] == "This browser cannot open it"


def test_it_says_what_it_is(local_page: Page) -> None:
    chips = local_page.locator("#model li").all_inner_texts()
    assert chips == ["lipsformer_cswin", "fp32", "WebAssembly"]
    assert "never leave it" in local_page.locator("footer").inner_text()
    assert local_page.locator(".copy").count() == 0


def test_a_changed_file_does_not_run(browser: Browser, site: Path, tmp_path: Path) -> None:
    shutil.copytree(site, tmp_path / "site")
    graph = tmp_path / "site" / "whole-image.onnx"
    content = bytearray(graph.read_bytes())
    content[len(content) // 2] ^= 1
    graph.write_bytes(content)
    with folder_server(tmp_path / "site") as url, watched_page(browser) as watched:
        watched.page.goto(url)
        alert = watched.page.get_by_role("alert")
        alert.filter(has_text="whole-image.onnx is not the file that was exported").wait_for(timeout=60_000)
        shown = answers(watched.page, {"pear.jpg": PEAR.read_bytes()})
        assert shown["pear.jpg"]["title"] == "This page is damaged"


def test_the_runtime_is_known_by_its_hashes(package: Path, tmp_path: Path) -> None:
    assert f"npm pack --silent {RUNTIME} " in (REPOSITORY / "Makefile").read_text()
    files = read_runtime(package)
    assert sorted(files) == sorted([SCRIPT, WASM])
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    assert read_runtime(tmp_path) == files
    (tmp_path / WASM).write_bytes(files[WASM] + b"\0")
    with pytest.raises(InputError, match=f"its {WASM} is not that of {RUNTIME}"):
        read_runtime(tmp_path)
    (tmp_path / WASM).unlink()
    with pytest.raises(InputError, match=f"no {WASM} in it"):
        read_runtime(tmp_path)


def test_what_is_no_package_is_refused(tmp_path: Path, trained: Trained) -> None:
    (tmp_path / "runtime.tgz").write_bytes(b"nothing")
    done = CliRunner().invoke(app, ["export", str(trained.checkpoint), "--web", str(tmp_path / "site"), "--web-runtime",
                                    str(tmp_path / "runtime.tgz")])  # fmt: skip
    assert isinstance(done.exception, InputError)
    assert f"not a package of {RUNTIME}" in str(done.exception)
    assert not (tmp_path / "site").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [([], "--output BUNDLE is missing"), (["--output", "bundle", "--web-runtime", "x"], "--web-runtime is for --web")],
)
def test_options_that_do_not_fit(options: list[str], message: str, trained: Trained) -> None:
    done = CliRunner().invoke(app, ["export", str(trained.checkpoint), *options])
    assert isinstance(done.exception, InputError)
    assert message in str(done.exception)
