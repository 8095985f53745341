"""Malformed inference requests: each is refused with a 4xx status in the protocol's form, and disturbs nobody else."""

from __future__ import annotations

import base64
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from lipsformer.images.samples import SAMPLES
from lipsformer.serving.http.open_inference.requests import MAX_VALUES, parse_request
from lipsformer.serving.http.problems import Problem
from tests.support.http.raw_http import Connection
from tests.support.http.server import App, app_running
from tests.support.trained import Trained

PHOTO = (SAMPLES / "Kaiser.jpg").read_bytes()
SIDE = 32
REQUESTS = 200
INFER = "/v2/models/lipsformer/infer"

Request = dict[str, Any]


@pytest.fixture(scope="module")
def app(trained: Trained) -> Iterator[App]:
    with app_running(trained.bundle, MAX_IMAGES="4", MAX_BYTES="300000", MAX_PIXELS="1000000") as app:
        yield app


def image() -> Request:
    tensor = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [base64.b64encode(PHOTO).decode()]}
    return {"id": "a", "inputs": [tensor], "outputs": [{"name": "labels", "parameters": {"binary_data": False}}]}


def pixels() -> Request:
    tensor = {"name": "pixels", "shape": [1, SIDE, SIDE, 3], "datatype": "UINT8", "data": [7] * SIDE * SIDE * 3}
    return {"id": "a", "inputs": [tensor], "outputs": [{"name": "scores"}]}


def binary(data: bytes, **changes: Any) -> tuple[Request, bytes]:
    """A request with one binary tensor."""
    request = image()
    del request["inputs"][0]["data"]
    request["inputs"][0] |= {"parameters": {"binary_data_size": len(data)}, **changes}
    return request, data


def element(data: bytes) -> bytes:
    return len(data).to_bytes(4, "little") + data


def body_of(request: Request, data: bytes = b"", length: object = None) -> tuple[bytes, bytes]:
    """A body and the line of the header that says where its binary data begin."""
    head = json.dumps(request).encode()
    if data and length is None:
        length = len(head)
    return head + data, b"" if length is None else f"Inference-Header-Content-Length: {length}\r\n".encode()


WRONG = (None, True, 1.5, -1, 0, "", "x", [], [[]], {}, {"a": 1}, 2**70, ["x"], [None], [256], [-1], "\x00")
KEYS = ("inputs", "outputs", "id", "parameters")


def wrong_value(draw: random.Random, request: Request) -> Request:
    """Another type or value somewhere; nulls and empty outputs, which clients send, are not among them."""
    tensor, output = request["inputs"][0], request["outputs"][0]
    place, key = draw.choice([(tensor, key) for key in ("name", "shape", "datatype", "data")] + [(output, "name")])
    place[key] = draw.choice(WRONG)
    return request


def wrong_top(draw: random.Random, request: Request) -> Request:
    request[draw.choice(KEYS)] = draw.choice((True, 1.5, -1, "x" * 9, ["x"], [None]))
    if isinstance(request.get("id"), str) and request["id"] != "a":
        request["id"] = 7
    return request


def missing(draw: random.Random, request: Request) -> Request:
    del request["inputs"][0][draw.choice(("name", "shape", "datatype", "data"))]
    return request


def wrong_shape(draw: random.Random, request: Request) -> Request:
    shape = request["inputs"][0]["shape"]
    match draw.randrange(3):
        case 0:
            shape[draw.randrange(len(shape))] += draw.choice((-1, 1, 5, 2**40))
        case 1:
            shape.append(draw.choice((2, 3)))
        case _:
            shape.insert(0, draw.choice((0, 2, -1)))
    return request


def wrong_element(draw: random.Random, request: Request) -> Request:
    data = request["inputs"][0]["data"]
    data[draw.randrange(len(data))] = draw.choice((None, True, 1.5, -1, 256, "#", "http://a/b.jpg", [1], {}, 2**70))
    return request


def wrong_parameter(draw: random.Random, request: Request) -> Request:
    name, values = draw.choice(
        [
            ("binary_data", ("yes", 1, [])),
            ("classification", (0, -1, "3", True, 1.5)),
            ("shared_memory_region", ("a",)),
        ]
    )
    request["outputs"][0] = {"name": "logits", "parameters": {name: draw.choice(values)}}
    return request


def more(draw: random.Random, request: Request) -> Request:
    key = draw.choice(("inputs", "outputs"))
    request[key] = request[key] * draw.choice((2, 3))
    return request


def other(draw: random.Random, request: Request) -> Request:
    request[draw.choice(("inputs", "outputs"))] = [{"name": draw.choice(("", "input_0", "\x00\u2028", "x" * 9000))}]
    return request


CHANGES: tuple[Callable[[random.Random, Request], Request], ...] = (
    wrong_value, wrong_top, missing, wrong_shape, wrong_element, wrong_parameter, more, other,
)  # fmt: skip


def framed(draw: random.Random) -> tuple[bytes, bytes]:
    """A request whose JSON or binary data are broken as bytes."""
    good = element(PHOTO)
    match draw.randrange(7):
        case 0:  # cut off
            body, _ = body_of(draw.choice((image, pixels))())
            return body[: draw.randrange(len(body))], b""
        case 1:
            length = draw.choice(("", "x", "-1", "1.5", "9" * 40, 0, 3, 10**9))
            return body_of(*binary(good), length=length)
        case 2:  # more or less than was said
            request, data = binary(good)
            return body_of(request, data[:-7] if draw.random() < 0.5 else data + b"7")
        case 3:
            wrong = draw.choice((0, -1, True, "1", None, 2**70, len(good) - 1))
            request, data = binary(good, parameters={"binary_data_size": wrong})
            return body_of(request, data)
        case 4:  # elements that are cut off, or too many of them
            return body_of(*binary(draw.choice((good[:-1], b"\xff" * 9, good + b"\x01", good * 2, b"\0" * 8))))
        case 5:
            return draw.choice(
                (b"", b"null", b"[]", b'"x"', b"7", b"{}", b"[" * 5000, b"\xff\xfe", b'{"inputs":NaN}')
            ), b""
        case _:
            request, data = binary(bytes(SIDE * SIDE * 3), name="pixels", datatype="UINT8", shape=[1, SIDE, SIDE, 4])
            return body_of(request, data)


def mutated(draw: random.Random) -> tuple[bytes, bytes]:
    if draw.random() < 0.3:
        return framed(draw)
    return body_of(draw.choice(CHANGES)(draw, draw.choice((image, pixels))()))


def posted(connection: Connection, body: bytes, header: bytes) -> tuple[int, dict[str, Any]]:
    head = f"POST {INFER} HTTP/1.1\r\nHost: test\r\nContent-Length: {len(body)}\r\n".encode()
    connection.send(head + header + b"\r\n" + body)
    reply = connection.reply()
    assert reply is not None
    status, headers, content = reply
    assert headers["content-type"] == "application/json"
    return status, json.loads(content)


def test_malformed_requests_are_refused_in_the_form_of_the_protocol(app: App) -> None:
    address = urlsplit(app.url)
    assert address.hostname
    assert address.port
    messages: Counter[str] = Counter()
    with Connection((address.hostname, address.port)) as connection:
        good = posted(connection, *body_of(image()))
        assert good[0] == 200
        for number in range(REQUESTS):
            body, header = mutated(random.Random(number))  # noqa: S311 - the same each time
            status, answer = posted(connection, body, header)
            shown = f"request {number}: {header!r} {body[:300]!r}... {len(body)} bytes: {status} {answer}"
            assert 400 <= status < 500, shown
            assert answer.keys() == {"error"}, shown
            assert answer["error"].isprintable(), shown
            assert answer["error"].isascii(), shown
            assert len(answer["error"]) < 500, shown
            messages[answer["error"]] += 1
        assert posted(connection, *body_of(image())) == good
        assert posted(connection, *body_of(*binary(element(PHOTO)))) == good
    assert len(messages) > 40  # they are refused for many reasons


def error(response: httpx.Response, status: int) -> str:
    assert response.status_code == status, response.text
    (text,) = response.json().values()
    return str(text)


def test_limits_hold_before_anything_is_decoded(app: App) -> None:
    with httpx.Client(base_url=app.url, timeout=30) as client:
        request = image()
        request["inputs"][0] |= {"shape": [5], "data": [""] * 5}
        assert error(client.post(INFER, json=request), 413) == "5 images, limit 4; send them in several requests"
        assert error(client.post(INFER, content=b"x" * (4 * 300_000 + 1)), 413).startswith("the body has 1200001 bytes")
        request = image()
        request["inputs"][0]["data"] = [base64.b64encode(bytes(300_001)).decode()]
        assert "300001 bytes" in error(client.post(INFER, json=request), 413)
        compressed = client.post(INFER, content=b"x", headers={"Content-Encoding": "gzip"})
        assert error(compressed, 415).startswith("content encoding 'gzip'")


def test_a_large_json_object_is_refused_before_it_is_parsed() -> None:
    head = b'{"inputs":[' + b"[]," * MAX_VALUES + b"[]]}"
    with pytest.raises(Problem, match="over 1000000 values; send it as binary data"):
        parse_request(memoryview(head), None, inputs=(), outputs=(), max_images=1)


def test_one_bad_image_fails_its_request_alone(app: App) -> None:
    request = image()
    good = request["inputs"][0]["data"][0]
    request["inputs"][0] |= {"shape": [3], "data": [good, base64.b64encode(PHOTO[:3000]).decode(), good]}
    assert error(httpx.post(app.url + INFER, json=request), 422).startswith("image 1: image: damaged")
    assert httpx.post(app.url + INFER, json=image()).status_code == 200


def test_unknown_paths_and_methods_are_refused_in_the_form_of_the_protocol(app: App) -> None:
    for path, status in (("/v2/models/other", 404), ("/v2/nothing", 404), (INFER, 405), ("/v2/models/a/b/c", 404)):
        assert error(httpx.get(app.url + path), status)
    assert "reason" in httpx.get(f"{app.url}/v22").json()
    scraped = httpx.get(f"{app.url}/metrics").text
    assert "/v2/models/other" not in scraped
