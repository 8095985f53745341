"""Multipart forms, of ordinary clients and of attackers."""

from __future__ import annotations

import email.generator
import random

import httpx
import pytest

from lipsformer.serving.http.multipart import Upload, one_image, several_images, split_form
from lipsformer.serving.http.problems import Problem

KIND = "multipart/form-data; boundary=x"


def view(body: bytes) -> memoryview:
    return memoryview(bytearray(body))


def part(head: str, data: bytes = b"bytes") -> bytes:
    return b"--x\r\n" + head.encode() + b"\r\n\r\n" + data + b"\r\n"


def field(name: str, filename: str | None = "a.jpg") -> str:
    return f'Content-Disposition: form-data; name="{name}"' + (f'; filename="{filename}"' if filename else "")


END = b"--x--\r\n"


def reason(body: bytes, kind: str = KIND) -> str:
    with pytest.raises(Problem) as refusal:
        one_image(view(body), kind)
    return refusal.value.reason


def test_what_a_client_library_sends_comes_out() -> None:
    data = bytes(range(256)) * 300 + b"\r\n--" + b"\r\n\r\n--"
    sent = httpx.Request(
        "POST", "http://host/", files=[("image", ('Föto "1".jpg', data, "image/jpeg"))], data={"top_k": "3"}
    )
    upload = one_image(view(sent.read()), sent.headers["content-type"])
    assert bytes(upload.images[0]) == data
    assert upload.top_k == "3"
    assert upload.names[0].startswith("Föto")  # type: ignore[union-attr]


def test_many_images_keep_their_order_and_names() -> None:
    files = [("images", (f"{number}.jpg", bytes([number]) * number)) for number in range(1, 60)]
    sent = httpx.Request("POST", "http://host/", files=files)
    upload = several_images(view(sent.read()), sent.headers["content-type"], 64)
    assert [bytes(image) for image in upload.images] == [file[1] for _, file in files]
    assert list(upload.names) == [file[0] for _, file in files]
    with pytest.raises(Problem, match="59 images, limit 58") as refusal:
        several_images(view(sent.read()), sent.headers["content-type"], 58)
    assert refusal.value.status == 413


def test_a_part_with_a_type_but_no_file_name_is_a_file() -> None:
    body = part(field("image", None) + "\r\nContent-Type: image/png") + END
    assert one_image(view(body), KIND) == Upload(images=(view(b"bytes"),), names=(None,), top_k=None)


def test_forms_without_one_image_are_refused() -> None:
    assert reason(part(field("photo")) + END) == "missing_field"
    assert reason(part(field("image")) * 2 + END) == "several_images"
    assert reason(part(field("image", None)) + END) == "not_a_file"
    assert reason(part(field("image")) + part(field("other")) * 9 + END) == "too_many_images"
    assert reason(END) == "missing_field"


def test_what_is_no_form_is_refused() -> None:
    good = part(field("image")) + END
    for length in range(len(good) - 4):  # cut off anywhere before the closing boundary is told
        assert reason(good[:length]) == "malformed_form"
    assert reason(good, "multipart/form-data") == "malformed_form"
    assert reason(good, "multipart/form-data; boundary=" + "x" * 300) == "malformed_form"
    assert reason(good, 'multipart/form-data; boundary=""') == "malformed_form"
    assert reason(good.replace(b"\r\n\r\n", b"\n\n")) == "malformed_form"
    assert reason(good.replace(b"--x\r\n", b"--xy\r\n")) == "malformed_form"
    assert reason(part(field("image") + "\r\nX: " + "y" * 9000) + END) == "malformed_form"


def test_preamble_epilogue_and_padding_are_allowed() -> None:
    body = b"this is skipped\r\n" + part(field("image")).replace(b"--x\r\n", b"--x \t\r\n") + END + b"and this"
    assert bytes(one_image(view(body), KIND).images[0]) == b"bytes"
    assert bytes(one_image(view(part(field("image"), b"") + END), KIND).images[0]) == b""


def test_random_bodies_never_do_worse_than_a_refusal() -> None:
    rng = random.Random(7)  # noqa: S311 - a test
    pieces = [
        b"--x",
        b"\r\n",
        b"--",
        b"\r\n\r\n",
        field("image").encode(),
        b"a",
        b"\0",
        b"--x--",
        b'"',
        b";",
        b"=",
        b":",
    ]
    refused = 0
    for _ in range(3000):
        body = b"".join(rng.choices(pieces, k=rng.randrange(1, 25)))
        try:
            for found in split_form(view(body), KIND, max_parts=4):
                assert bytes(found.data) in body
        except Problem:
            refused += 1
    assert 0 < refused < 3000


def test_a_body_of_half_boundaries_costs_no_more_than_reading_it() -> None:
    boundary = email.generator._make_boundary()
    body = b"--" + boundary.encode() + b"\r\n" + field("image").encode() + b"\r\n\r\n"
    body += (b"\r\n--" + boundary.encode()[:-1] + b"!") * 400_000 + b"\r\n--" + boundary.encode() + b"--"
    upload = one_image(view(body), f"multipart/form-data; boundary={boundary}")
    assert len(upload.images[0]) == 400_000 * (len(boundary) + 4)
