"""What a refusal says: the value that was sent, bounded and in ASCII, and what is accepted instead."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import httpx
import pytest

from lipsformer.images.samples import SAMPLES
from tests.support.http.server import App, app_running
from tests.support.trained import Trained

PHOTO = (SAMPLES / "Kaiser.jpg").read_bytes()
KIND = {"Content-Type": "image/jpeg"}
FORM = {"Content-Type": "multipart/form-data; boundary=x"}
ENCODED = {"gzip": gzip.compress(PHOTO), "deflate": zlib.compress(PHOTO)}
ROUTES = ("classify", "classify_batch", "info", "openapi.json", "metrics", "page.css", "page.js", "")
END = "--x--\r\n"
NO_BOUNDARY = "multipart/form-data; b=x"


def part(name: str, data: str = "x", filename: str = '; filename="a"') -> str:
    return f'--x\r\nContent-Disposition: form-data; name="{name}"{filename}\r\n\r\n{data}\r\n'


@pytest.fixture(scope="module")
def app(trained: Trained) -> Iterator[App]:
    with app_running(trained.bundle, MAX_BYTES="300000", MAX_IMAGES="3") as app:
        yield app


@pytest.fixture
def client(app: App) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=app.url, timeout=30) as client:
        yield client


def detail(response: httpx.Response, status: int, reason: str) -> str:
    problem = response.json()
    assert (response.status_code, problem["reason"]) == (status, reason), response.text
    assert len(problem["detail"]) < 500
    assert problem["detail"].isascii()
    return str(problem["detail"])


@pytest.mark.parametrize(
    "sent", ["gzip", "deflate", "br", "GZIP", "zstd, gzip", "identity,x-own", "\xfcnknown", "z" * 300]
)
def test_a_compressed_body_is_refused_by_its_encoding(sent: str, client: httpx.Client) -> None:
    headers = {"Content-Encoding": sent.encode("latin-1")}
    form = httpx.Request("POST", "http://host/", files={"images": PHOTO})
    batch = {**headers, "Content-Type": form.headers["content-type"]}
    for response in (
        client.post("/classify", content=ENCODED.get(sent, PHOTO), headers={**KIND, **headers}),
        client.post("/classify_batch", content=gzip.compress(form.read()), headers=batch),
    ):
        said = detail(response, 415, "wrong_content_encoding")
        assert ascii(sent.removeprefix("identity,"))[1:100] in said
        assert response.headers["accept-encoding"] == "identity"


def test_a_body_that_is_not_compressed_is_accepted(client: httpx.Client) -> None:
    for encoding in ("identity", "", "Identity, identity"):
        headers = {**KIND, "Content-Encoding": encoding}
        assert client.post("/classify", content=PHOTO, headers=headers).status_code == 200
    several = [("Content-Type", "image/jpeg"), ("Content-Encoding", "identity"), ("Content-Encoding", "br")]
    assert "'br'" in detail(client.post("/classify", content=PHOTO, headers=several), 415, "wrong_content_encoding")


@pytest.mark.parametrize("route", ROUTES)
def test_a_slash_at_the_end_changes_nothing(route: str, client: httpx.Client, app: App) -> None:
    """A redirect would lose the prefix that a proxy has taken off the path."""
    for method in ("GET", "POST"):
        sent: dict[str, Any] = {"content": PHOTO, "headers": KIND} if method == "POST" else {}
        without = client.request(method, f"/{route}", **sent)
        for slashes in ("/", "//"):
            response = client.request(method, f"/{route}{slashes}", **sent)
            assert (response.status_code, response.headers["content-type"]) == (
                without.status_code,
                without.headers["content-type"],
            )
            assert response.status_code in (200, 405, 415)
            assert "location" not in response.headers
    assert {record.route for record in app.records[-6:]} == {f"/{route}"}


@pytest.mark.parametrize("path", ["/livez/", "/readyz/", "/healthz/", "/info/", "/classify/"])
def test_a_real_server_redirects_nowhere(path: str, server: str) -> None:
    response = httpx.post(f"{server}{path}", content=PHOTO, headers=KIND) if "classify" in path else None
    assert (response or httpx.get(f"{server}{path}")).status_code == 200


def test_an_unknown_path_is_a_problem_with_and_without_a_slash(client: httpx.Client) -> None:
    for path in ("/classif", "/classif/", "/classify/top", "/v1/classify/", "//classify"):
        assert f"nothing is at '{path}'" in detail(
            client.get(httpx.URL(f"{client.base_url}").copy_with(raw_path=path.encode())), 404, "not_found"
        )
    assert "..." in detail(client.get("/" + "x" * 900), 404, "not_found")


@pytest.mark.parametrize(
    ("method", "path", "words"),
    [
        ("GET", "/classify", "/classify does not support 'GET'; use POST"),
        ("DELETE", "/info", "/info does not support 'DELETE'; use GET or HEAD"),
        ("PUT", "/classify_batch/", "/classify_batch does not support 'PUT'; use POST"),
    ],
)
def test_a_wrong_method_names_the_right_one(method: str, path: str, words: str, client: httpx.Client) -> None:
    assert detail(client.request(method, path), 405, "refused") == words


@pytest.mark.parametrize(
    ("fields", "listed"),
    [
        (["photo"], "only 'photo'; send"),
        (["file", "top_k"], "only 'file', 'top_k'; send"),
        (["images", "images"], "only 'images'; send"),
        (["", "Im\xe4ge"], "only '', 'Im\\xe4ge'; send"),
        ([f"f{n}" for n in range(9)], "'f7', 1 others; send"),
        (["n" * 3000], f"only '{'n' * 40}'...; send"),
    ],
)
def test_a_form_without_the_field_lists_those_that_it_has(fields: list[str], listed: str, client: httpx.Client) -> None:
    body = "".join(map(part, fields)) + END
    said = detail(client.post("/classify", content=body.encode(), headers=FORM), 400, "missing_field")
    assert said.startswith("the form has no field 'image', ")
    assert listed in said


def test_a_form_without_fields_says_so(client: httpx.Client) -> None:
    said = detail(client.post("/classify_batch", content=END.encode(), headers=FORM), 400, "missing_field")
    assert said == "the form has no field 'images', and no others; send each image as a file in that field"


@pytest.mark.parametrize(
    ("body", "headers", "status", "reason", "words"),
    [
        (part("image") * 3 + END, FORM, 400, "several_images", "has 3 fields 'image'"),
        (part("image", "http://a/b.jpg", "") + END, FORM, 422, "not_a_file", "the text 'http://a/b.jpg', not"),
        (part("image", "data:" + "A" * 500, "") + END, FORM, 422, "not_a_file", f"the text 'data:{'A' * 55}'..., not"),
        (part("image") + part("top_k", "five", "") + END, FORM, 400, "bad_top_k", "top_k='five':"),
        (part("image") + part("top_k", "9" * 31, "") + END, FORM, 400, "bad_top_k", f"top_k='{'9' * 20}'...:"),
        ("--y\r\n", FORM, 400, "malformed_form", "no boundary '--x' in a body of 5 bytes"),
        ("--x\r\nContent", FORM, 400, "malformed_form", "cut off in the headers of field 1"),
        ("--x\r\nA: b\r\n\r\nx", FORM, 400, "malformed_form", "cut off in field '', after 14 bytes"),
        (part("one") + part("two")[:-2], FORM, 400, "malformed_form", "cut off in field 'two', after"),
        ("--xy\r\n\r\nx\r\n--x", FORM, 400, "malformed_form", "followed by 'y' and no line break"),
        ("", {"Content-Type": NO_BOUNDARY}, 400, "malformed_form", f"'{NO_BOUNDARY}' names no"),
        ("x", {"Content-Type": "text/csv"}, 415, "wrong_content_type", "content type 'text/csv' cannot"),
        ("x", {"Content-Type": "q" * 200}, 415, "wrong_content_type", f"'{'q' * 100}'... cannot"),
        ("x", {}, 415, "wrong_content_type", "a body without a content type cannot"),
        ("x" * 400_000, KIND, 413, "too_many_bytes", "the body has 400000 bytes, limit"),
    ],
)  # fmt: skip
def test_a_refused_value_is_shown(
    body: str, headers: Mapping[str, str], status: int, reason: str, words: str, client: httpx.Client
) -> None:
    response = client.post("/classify", content=body.encode(), headers=headers)
    assert words in detail(response, status, reason)


def test_too_many_images_are_counted(client: httpx.Client) -> None:
    body = (part("images") * 4 + END).encode()
    said = detail(client.post("/classify_batch", content=body, headers=FORM), 413, "too_many_images")
    assert said.startswith("4 images, limit 3;")
