"""What is sent: real photos, files that are none or are damaged, and clients that are slow or go away."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from lipsformer.images.samples import SAMPLES

if TYPE_CHECKING:
    from lipsformer.inference.predictor import Predictor

__all__ = ["FAMILIES", "Kind", "expectations", "images", "kinds"]

BOUNDARY = b"----benchmark-5f1c0d"
FAMILIES = {
    "raw": "a photo as the body",
    "form": "a photo in a form",
    "tensor": "a photo as the pixels of the null model, in binary data of the Open Inference Protocol",
    "png": "a photo as PNG, in a form",
    "large": "a JPEG of 12 megapixels as from a phone, in a form",
    "text": "text that is said to be a JPEG",
    "corrupt": "a photo with a kilobyte overwritten",
    "truncated": "half a photo",
    "empty": "no body",
    "cut_form": "a form without its end",
    "slow": "a photo that trickles in over 2 s",
    "stalled": "half a photo, and the rest never comes",
    "leaving": "a client that is gone halfway through its body",
    "impatient": "a client that sends a photo and is gone 20 ms later",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind:
    """One request, ready to be written, with what may be answered to it.

    `expected` has labels or reasons. The request is sent in `pieces` over `seconds`; the client goes away once
    `leaves_after` seconds have passed since the last piece, where that is set.
    """

    family: str
    request: bytes
    expected: frozenset[str]
    has_label: bool
    pieces: int = 1
    seconds: float = 0
    leaves_after: float | None = None


@functools.cache
def images() -> dict[str, bytes]:
    """Encoded images by name: the sample photos, and what was made of them."""
    photos = {path.stem: path.read_bytes() for path in sorted(SAMPLES.glob("*.jpg"))}
    one = next(iter(photos.values()))
    corrupt = bytearray(one)
    corrupt[len(one) // 2 : len(one) // 2 + 1024] = bytes(range(256)) * 4
    with Image.open(io.BytesIO(one)) as image:
        png, large = io.BytesIO(), io.BytesIO()
        image.save(png, "PNG")
        smooth = np.asarray(image.resize((4000, 3000), Image.Resampling.BICUBIC), np.float32)
        noise = np.random.default_rng(0).normal(0, 6, smooth.shape).astype(np.float32)  # of the sensor
        Image.fromarray(np.clip(smooth + noise, 0, 255).astype(np.uint8)).save(large, "JPEG", quality=90)
    made = {"png": png.getvalue(), "large": large.getvalue(), "corrupt": bytes(corrupt)}
    return {**photos, **made, "truncated": one[: len(one) // 2], "text": b"This is no photo. " * 1000, "empty": b""}


def expectations(predictor: Predictor) -> dict[str, str]:
    """For each image the label that `predictor` gives, or the reason for which it is refused."""
    from lipsformer.images.open import ImageError

    found = {}
    for name, data in images().items():
        try:
            found[name] = predictor.predict([data], top_k=1)[0][0].label
        except ImageError as error:
            found[name] = error.reason
    return found


def kinds(family: str, path: str, host: str, expected: Mapping[str, str]) -> list[Kind]:
    """The requests of a family: one for each sample photo, or the one there is."""
    photos = [path.stem for path in sorted(SAMPLES.glob("*.jpg"))]
    names = [family] if family in images() else photos
    return [_kind(family, name, path, host, expected) for name in names]


def _kind(family: str, name: str, path: str, host: str, expected: Mapping[str, str]) -> Kind:
    data = images()[name]
    in_form = family in ("form", "png", "large", "cut_form", "slow")
    body, media_type = _form(data) if in_form else (data, b"image/jpeg")
    if family == "cut_form":
        body = body[:-20]
    if family == "tensor":
        return Kind(
            family=family, request=_tensor(data, path, host), expected=frozenset([expected[name]]), has_label=True
        )
    head = b"POST %b HTTP/1.1\r\nHost: %b\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n"
    request = head % (path.encode(), host.encode(), media_type, len(body)) + body
    answer = frozenset([expected[name]])
    has_label = expected[name] not in ("damaged", "not_an_image", "empty")
    match family:
        case "cut_form":
            return Kind(family=family, request=request, expected=frozenset(["malformed_form"]), has_label=False)
        case "slow":
            return Kind(family=family, request=request, expected=answer, has_label=True, pieces=20, seconds=2)
        case "stalled" | "leaving":
            half, wait = request[: len(request) // 2], 15.0 if family == "stalled" else 0.05
            late = frozenset(["slow_upload"])
            return Kind(family=family, request=half, expected=late, has_label=False, leaves_after=wait)
        case "impatient":
            return Kind(family=family, request=request, expected=answer, has_label=True, leaves_after=0.02)
        case _:
            return Kind(family=family, request=request, expected=answer, has_label=has_label)


def _tensor(data: bytes, path: str, host: str) -> bytes:
    """A request for the label in JSON and the scores as binary data."""
    from null_model import IMAGE_SIZE  # imports onnx, which takes a moment

    with Image.open(io.BytesIO(data)) as image:
        pixels = np.asarray(image.convert("RGB").resize((IMAGE_SIZE, IMAGE_SIZE)))
    size = {"binary_data_size": pixels.nbytes}
    tensor = {"name": "pixels", "datatype": "UINT8", "shape": [1, *pixels.shape], "parameters": size}
    outputs = [{"name": "labels"}, {"name": "scores", "parameters": {"binary_data": True}}]
    about = json.dumps({"inputs": [tensor], "outputs": outputs}).encode()
    head = b"POST %b HTTP/1.1\r\nHost: %b\r\nInference-Header-Content-Length: %d\r\nContent-Length: %d\r\n\r\n"
    return head % (path.encode(), host.encode(), len(about), len(about) + pixels.nbytes) + about + pixels.tobytes()


def _form(data: bytes) -> tuple[bytes, bytes]:
    part = b'Content-Disposition: form-data; name="image"; filename="photo"\r\nContent-Type: image/jpeg\r\n\r\n'
    body = b"--%b\r\n%b%b\r\n--%b--\r\n" % (BOUNDARY, part, data, BOUNDARY)
    return body, b"multipart/form-data; boundary=" + BOUNDARY
