"""The images of `odd_images.py`, sent to a real server: each gets an answer or a clear refusal, and nothing leaks."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from lipsformer import load_predictor
from lipsformer.images.open import ImageError, ImageLimits, open_image
from lipsformer.images.rgb import to_rgb
from lipsformer.images.samples import SAMPLES
from tests.support.http.server import serving
from tests.support.images.files import encode
from tests.support.images.odd import FILE_NAMES, Odd, collection
from tests.support.observed import settled, taken, verdict
from tests.support.trained import Trained

PHOTO = SAMPLES / "Kaiser.jpg"
LIMITS = ImageLimits(max_bytes=2_000_000, max_pixels=4_000_000)
CLIENTS = 4
ROUND = 40 * 1024 * 1024  # bytes by which memory may differ from one round to the next: allocators keep some


@pytest.fixture(scope="module")
def odd() -> list[Odd]:
    return collection()


@pytest.fixture(scope="module")
def running(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[httpx.Client, int]]:
    """A client of a server with tight limits, and the server's process."""
    log = tmp_path_factory.mktemp("odd") / "server.log"
    limits = {
        "LIPSFORMER_MAX_BYTES": str(LIMITS.max_bytes),
        "LIPSFORMER_MAX_PIXELS": str(LIMITS.max_pixels),
        "LIPSFORMER_WORKERS": "1",
        "LIPSFORMER_THREADS": "2",
        "LIPSFORMER_DECODE_TIMEOUT": "1",
    }
    with serving(trained.bundle, log, **limits) as (url, process), httpx.Client(base_url=url, timeout=20) as client:
        yield client, process.pid
    assert "Traceback" not in log.read_text()


@pytest.fixture
def client(running: tuple[httpx.Client, int]) -> httpx.Client:
    return running[0]


def judge(response: httpx.Response) -> str:
    return verdict(response.status_code, response.headers, response.content)


def post(client: httpx.Client, odd: Odd, *, form: bool) -> str:
    if form:
        return judge(client.post("/classify", files={"image": (odd.name, odd.content)}))
    return judge(client.post("/classify", content=odd.content, headers={"Content-Type": "image/jpeg"}))


def best(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    return str(response.json()["predictions"][0]["label"])


def locally(odd: Odd) -> str:
    try:
        to_rgb(open_image(odd.content, limits=LIMITS))
    except ImageError as error:
        return error.reason
    return "image"


@pytest.mark.slow
def test_every_odd_image_is_answered_or_refused(
    running: tuple[httpx.Client, int], odd: list[Odd], trained: Trained
) -> None:
    client, process = running
    right = load_predictor(trained.bundle).predict([PHOTO], 1)[0][0].label
    assert len({file.name for file in odd}) == len(odd) >= 60

    def post_all(form: bool) -> dict[str, str]:
        with ThreadPoolExecutor(CLIENTS) as pool:
            return dict(zip([o.name for o in odd], pool.map(lambda o: post(client, o, form=form), odd), strict=True))

    processes = taken(process).processes
    raw = post_all(form=False)
    assert not {file.name: raw[file.name] for file in odd if raw[file.name] not in file.allowed}
    before = settled(process, processes)
    forms = post_all(form=True)
    after = settled(process, processes)
    cheap = {file.name for file in odd if not file.costly}
    assert {name: forms[name] for name in cheap} == {name: raw[name] for name in cheap}
    assert {"image", "empty", "damaged", "not_an_image", "too_many_pixels"} <= set(raw.values())
    assert best(client.post("/classify", files={"image": PHOTO.read_bytes()})) == right
    assert after.files <= before.files + CLIENTS
    assert after.memory <= before.memory + ROUND


@pytest.mark.filterwarnings("ignore::UserWarning")  # as `images` has it: pytest turns Pillow's into errors
def test_the_same_verdict_without_a_server(client: httpx.Client, odd: list[Odd]) -> None:
    cheap = [file for file in odd if not file.costly]
    assert {file.name: post(client, file, form=True) for file in cheap} == {file.name: locally(file) for file in cheap}


def test_a_form_with_any_file_name_is_read(client: httpx.Client) -> None:
    right = best(client.post("/classify", files={"image": PHOTO.read_bytes()}))
    for name in FILE_NAMES:
        response = client.post("/classify", files={"image": (name, PHOTO.read_bytes())})
        assert best(response) == right
        assert "set-cookie" not in response.headers
    for name in (*FILE_NAMES, '"', '""', "\\", "\xff"):  # as no client would write it
        disposition = b'Content-Disposition: form-data; name="image"; filename="' + name.encode() + b'"\r\n\r\n'
        body = b"--b\r\n" + disposition + PHOTO.read_bytes() + b"\r\n--b--\r\n"
        response = client.post("/classify", content=body, headers={"Content-Type": "multipart/form-data; boundary=b"})
        assert judge(response) in ("image", "malformed_form", "missing_field", "not_a_file")


def address_everywhere(client: httpx.Client, url: str) -> Iterator[httpx.Response]:
    """Requests that name an address in every place where a careless server might follow it."""
    svg = f"<svg xmlns='http://www.w3.org/2000/svg'><image href='{url}'/></svg>".encode()
    entity = f"<!DOCTYPE s [<!ENTITY x SYSTEM '{url}'>]><svg>&x;</svg>".encode()
    jpeg = {"Content-Type": "image/jpeg"}
    yield client.post("/classify_batch", files=[("images", (None, url))])
    yield client.post(
        "/classify_batch", files=[("images", (url, url.encode())), ("image", ("a.svg", svg, "image/svg+xml"))]
    )
    yield client.post("/classify_batch", json={"images": [url]})
    yield client.post("/classify_batch", params={"images": url}, content=url.encode(), headers=jpeg)
    for field in ("image", "images", "url", "file"):
        yield client.post("/classify", files={field: (None, url)})
        yield client.post("/classify", data={field: url})
        yield client.post("/classify", json={field: url})
        yield client.post("/classify", json={field: {"url": url, "href": url}})
        yield client.post("/classify", params={field: url}, content=b"", headers=jpeg)
    for content in (
        url.encode(),
        svg,
        entity,
        f"URL={url}\n".encode(),
        f"push graphic-context\nimage over 0,0 '{url}'".encode(),
    ):
        yield client.post("/classify", content=content, headers=jpeg)
        yield client.post("/classify", files={"image": ("photo.svg", content, "image/svg+xml")})
    photo = PHOTO.read_bytes()
    yield client.post("/classify", files={"image": (url, photo)})
    yield client.post("/classify", files={"image": ("photo.jpg", photo, "image/jpeg", {"Content-Location": url})})
    external = f'message/external-body; access-type=URL; URL="{url}"'
    yield client.post("/classify", files={"image": ("photo.jpg", b"", external)})
    for header in ("Content-Location", "Referer", "Origin", "X-Forwarded-Host", "Link", "Location", "X-Original-URL"):
        yield client.post("/classify", content=photo, headers={**jpeg, header: url})
    yield client.post("/classify", content=photo, headers={**jpeg, "Host": url.split("/")[2]})
    yield client.post("/classify", content=encode("JPEG", comment=url.encode()), headers=jpeg)
    yield client.post("/classify", content=encode("PNG", icc_profile=url.encode()), headers=jpeg)


def test_no_way_of_naming_an_address_makes_a_connection(client: httpx.Client) -> None:
    with socket.create_server(("127.0.0.1", 0)) as trap:
        address = trap.getsockname()
        url = f"http://127.0.0.1:{address[1]}/photo.jpg"
        verdicts = [judge(response) for response in address_everywhere(client, url)]
        assert {"image", "not_an_image", "not_a_file", "wrong_content_type"} <= set(verdicts)
        trap.settimeout(1.0)
        with pytest.raises(TimeoutError):
            trap.accept()
        with socket.create_connection(address):  # the trap does notice
            trap.accept()[0].close()


@pytest.mark.parametrize(
    ("status", "content"),
    [
        (500, {"reason": "internal_error", "status": 500, "detail": "send it again"}),
        (200, {"predictions": []}),
        (422, {"reason": "unheard_of", "status": 422, "detail": "send it again"}),
        (415, {"reason": "damaged", "status": 415, "detail": "send it again"}),
        (422, {"reason": "damaged", "status": 422, "detail": "no"}),
    ],
)
def test_a_wrong_answer_is_noticed(status: int, content: dict[str, object], tmp_path: Path) -> None:
    headers = {"Content-Type": "application/problem+json", "X-Content-Type-Options": "nosniff"}
    with pytest.raises(AssertionError):
        judge(httpx.Response(status, json=content, headers=headers))


def test_what_is_left_behind_is_noticed() -> None:
    before = taken(os.getpid())
    hog = f"kept = b'x' * {ROUND}; print('ready', flush=True); import time; time.sleep(60)"
    with socket.socket(), subprocess.Popen([sys.executable, "-c", hog], stdout=subprocess.PIPE) as left:
        assert left.stdout is not None
        assert left.stdout.readline() == b"ready\n"
        after = taken(os.getpid())
        assert after.processes == before.processes + 1
        assert after.files > before.files
        assert after.memory > before.memory + ROUND * 0.9
        with pytest.raises(AssertionError, match="processes instead of"):
            settled(os.getpid(), before.processes, seconds=0.2)
        left.kill()
    assert settled(os.getpid(), before.processes).processes == before.processes
