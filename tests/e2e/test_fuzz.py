"""Randomly broken uploads and requests, sent to a real server. Each run has a new seed and reports it.

LIPSFORMER_FUZZ sets how many uploads are sent (10,000 by default), LIPSFORMER_FUZZ_SEED repeats a run.
"""

from __future__ import annotations

import collections
import contextlib
import os
import random
import re
import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest

from lipsformer import load_predictor
from lipsformer.images.samples import SAMPLES
from tests.support.http.raw_http import Connection, Reply, post
from tests.support.http.server import serving
from tests.support.images.files import encode
from tests.support.images.mutations import BOUNDARY, originals, upload
from tests.support.observed import settled, taken, verdict
from tests.support.trained import Trained

PHOTO = SAMPLES / "Kaiser.jpg"
UPLOADS = int(os.environ.get("LIPSFORMER_FUZZ", "10000"))
SEED = int(os.environ.get("LIPSFORMER_FUZZ_SEED", secrets.randbits(32)))
CLIENTS = 16
KEPT = 60 * 1024 * 1024  # bytes by which memory may grow: allocators keep some

Address = tuple[str, int]


@pytest.fixture(scope="module")
def running(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Address, int]]:
    """The address of a server with tight limits, and its process."""
    log = tmp_path_factory.mktemp("fuzz") / "server.log"
    limits = {
        "LIPSFORMER_MAX_BYTES": "1000000",
        "LIPSFORMER_MAX_PIXELS": "200000",
        "LIPSFORMER_WORKERS": "1",
        "LIPSFORMER_THREADS": "2",
        "LIPSFORMER_DECODE_TIMEOUT": "2",
        "LIPSFORMER_READ_TIMEOUT": "3",
        "LIPSFORMER_ACCESS_LOG": "off",
    }
    with serving(trained.bundle, log, **limits) as (url, process):
        parts = urlsplit(url)
        assert parts.hostname
        assert parts.port
        yield (parts.hostname, parts.port), process.pid
    assert "Traceback" not in log.read_text()


@pytest.fixture
def address(running: tuple[Address, int]) -> Address:
    return running[0]


def best(address: Address) -> str:
    """The label that a valid photo gets."""
    with Connection(address) as connection:
        connection.send(post("/classify?top_k=1", "image/jpeg", PHOTO.read_bytes()))
        answer = connection.reply()
    assert answer
    assert answer[0] == 200, answer
    return answer[2].decode().split('"label":"')[1].split('"')[0]


def deaths(address: Address) -> dict[str, float]:
    """How many decoder processes have ended, by cause: the verdicts on batches do not tell."""
    with Connection(address) as connection:
        connection.send(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")
        answer = connection.reply()
    assert answer
    found = re.findall(r'lipsformer_decoder_deaths_total\{cause="(\w+)"\} (\S+)', answer[2].decode())
    return {cause: float(count) for cause, count in found}


def send_many(address: Address, seed: int, count: int) -> collections.Counter[str]:
    """The verdicts on `count` uploads, sent one after another on connections that are kept."""
    draw = random.Random(seed)  # noqa: S311 - a seed, not a secret
    seeds = originals()
    verdicts: collections.Counter[str] = collections.Counter()
    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(Connection(address))
        for number in range(count):
            content_type, body = upload(draw, seeds)
            form = content_type.startswith("multipart")
            path = "/classify_batch" if form and draw.random() < 0.4 else "/classify"
            connection.send(post(path, content_type, body))
            answer = connection.reply()
            where = f"upload {number} of seed {seed}: {path}, {content_type!r}, {body[:60]!r}..., {len(body)} bytes"
            assert answer, f"no answer to {where}"
            try:
                verdicts[verdict(*answer)] += 1
            except Exception as error:
                raise AssertionError(f"{where}: {answer}") from error
            if answer[1].get("connection") == "close":
                stack.close()
                connection = stack.enter_context(Connection(address))
    return verdicts


@pytest.mark.slow
def test_uploads_gone_wrong_are_answered_or_refused(
    running: tuple[Address, int], trained: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    address, process = running
    right = load_predictor(trained.bundle).predict([PHOTO], 1)[0][0].label
    processes = taken(process).processes
    share = UPLOADS // CLIENTS // 2
    rounds = []
    for first in (SEED, SEED + CLIENTS):
        with ThreadPoolExecutor(CLIENTS) as pool:
            rounds.append(sum(pool.map(lambda n: send_many(address, n, share), range(first, first + CLIENTS)),
                              collections.Counter()))  # fmt: skip
        assert best(address) == right
        rounds.append(settled(process, processes))
    verdicts, before, more, after = rounds
    told = f"{dict((verdicts + more).most_common())}, {before} -> {after}, deaths of decoders: {deaths(address)}"
    with capsys.disabled():
        print(f"\nfuzz: seed {SEED}, {told}")  # noqa: T201
    assert {"image", "images", "damaged", "not_an_image", "malformed_form"} <= set(verdicts + more)
    assert after.files <= before.files + CLIENTS
    assert after.memory <= before.memory + KEPT


HEAD = b"POST /classify HTTP/1.1\r\nHost: a\r\nContent-Type: image/jpeg\r\n"
GIF = encode("GIF")
LENGTH = f"Content-Length: {len(GIF)}\r\n".encode()
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
REQUESTS = {
    "noise": bytes(range(256)) * 10,
    "nothing": b"\r\n\r\n\r\n",
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
    "http2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9),
    "no version": b"GET /\r\n\r\n",
    "version 9": b"GET / HTTP/9.9\r\n\r\n",
    "unknown method": b"FROB /classify HTTP/1.1\r\nHost: a\r\n\r\n",
    "connect": b"CONNECT example.org:443 HTTP/1.1\r\nHost: a\r\n\r\n",
    "absolute": b"GET http://127.0.0.1:1/info HTTP/1.1\r\nHost: a\r\n\r\n",
    "asterisk": b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
    "climbing path": b"GET /../../etc/passwd HTTP/1.1\r\nHost: a\r\n\r\n",
    "encoded path": b"GET /%2e%2e/%00%ff%zz HTTP/1.1\r\nHost: a\r\n\r\n",
    "long path": b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
    "long query": HEAD.replace(b"classify", b"classify?top_k=" + b"9" * 60_000) + LENGTH + b"\r\n" + GIF,
    "no host": b"GET /info HTTP/1.1\r\n\r\n",
    "many headers": b"GET /info HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 50_000 + b"\r\n",
    "large header": b"GET /info HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 2_000_000 + b"\r\n\r\n",
    "control characters": b"GET /info HTTP/1.1\r\nHost: a\r\nX: \x00\x01\x7f\r\n\r\n",
    "folded header": b"GET /info HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n",
    "odd names": b"GET /info HTTP/1.1\r\nHost: a\r\n: x\r\nX Y: z\r\n\xff: \xfe\r\n\r\n",
    "request id": b"GET /info HTTP/1.1\r\nHost: a\r\nX-Request-ID: " + b"\xff<script>" * 90 + b"\r\n\r\n",
    "traceparent": b"GET /info HTTP/1.1\r\nHost: a\r\ntraceparent: 00-zz-\xff-01\r\ntraceparent: \r\n\r\n",
    "two lengths": HEAD + LENGTH + b"Content-Length: 3\r\n\r\n" + GIF,
    "length and chunks": HEAD + LENGTH + CHUNKED + b"3\r\nGIF\r\n0\r\n\r\n",
    "negative length": HEAD + b"Content-Length: -1\r\n\r\n" + GIF,
    "huge length": HEAD + b"Content-Length: " + b"9" * 400 + b"\r\n\r\n" + GIF,
    "length in words": HEAD + b"Content-Length: ten\r\n\r\n" + GIF,
    "unknown coding": HEAD + b"Transfer-Encoding: gzip, identity\r\n\r\n" + GIF,
    "compressed": HEAD + LENGTH + b"Content-Encoding: gzip\r\n\r\n" + GIF,
    "chunk of no number": HEAD + CHUNKED + b"zz\r\nGIF\r\n0\r\n\r\n",
    "huge chunk": HEAD + CHUNKED + b"f" * 30 + b"\r\nGIF",
    "chunk too long": HEAD + CHUNKED + b"2\r\nGIF89a\r\n0\r\n\r\n",
    "many chunks": HEAD + CHUNKED + b"1\r\nG\r\n" * 20_000 + b"0\r\n\r\n",
    "chunk extensions": HEAD + CHUNKED + b"1;" + b"a=b;" * 5000 + b"\r\nG\r\n0\r\n\r\n",
    "trailers": HEAD + CHUNKED + b"1\r\nG\r\n0\r\n" + b"X: y\r\n" * 5000 + b"\r\n",
    "no body": HEAD + b"\r\n",
    "upgrade": b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
    "upgrade to h2c": b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\r\n",
    "sixty thousand parts": post("/classify", f"multipart/form-data; boundary={BOUNDARY}",
                                     f"--{BOUNDARY}\r\n\r\n\r\n".encode() * 60_000),
    "boundary as a header": post("/classify", "multipart/form-data; boundary=\t\x01\"\\", GIF),
}  # fmt: skip


def test_broken_http_ends_in_a_refusal_or_in_silence(address: Address, trained: Trained) -> None:
    def ask(name: str) -> list[tuple[str, Reply]]:
        answers = []
        with Connection(address) as connection:
            connection.send(REQUESTS[name])
            connection.socket.settimeout(1)  # some are unfinished, and may be waited for
            with contextlib.suppress(TimeoutError):
                while answer := connection.reply():
                    answers.append((name, answer))
        return answers

    with ThreadPoolExecutor(len(REQUESTS)) as pool:  # so that they wait together
        answers = [answer for found in pool.map(ask, REQUESTS) for answer in found]
    assert [answer for answer in answers if answer[1][0] >= 500 or b"Traceback" in answer[1][2]] == []
    assert len({name for name, _ in answers}) > len(REQUESTS) / 4
    assert best(address) in trained.classes


def test_requests_in_one_go_are_answered_in_turn(address: Address) -> None:
    good, bad = post("/classify", "image/gif", GIF), post("/classify", "image/gif", b"none")
    with Connection(address) as connection:
        connection.send(b"".join([good, bad] * 20))
        answers = [connection.reply() for _ in range(40)]
    assert [verdict(*answer) if answer else None for answer in answers] == ["image", "not_an_image"] * 20


def test_a_client_may_wait_for_permission_to_send(address: Address) -> None:
    with Connection(address) as connection:
        connection.send(HEAD + LENGTH + b"Expect: 100-continue\r\n\r\n")
        assert connection.socket.recv(100).startswith(b"HTTP/1.1 100")
        connection.send(GIF)
        answer = connection.reply()
    assert answer
    assert verdict(*answer) == "image"


def test_slow_and_vanished_clients_hold_nobody_up(address: Address, trained: Trained) -> None:
    heads = (b"POST", HEAD, HEAD + LENGTH + b"\r\n" + GIF[:5], HEAD + CHUNKED + b"5\r\nGI")
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(Connection(address)) for _ in range(200)]
        for number, connection in enumerate(slow):
            connection.send(heads[number % len(heads)])
        assert best(address) in trained.classes
        for connection in slow[::2]:
            connection.socket.close()  # in the middle of what it says
        for connection in slow[1::2]:
            connection.send(b"x")
        assert best(address) in trained.classes
    for _ in range(100):
        with Connection(address) as gone:  # it does not wait for its answer
            gone.send(post("/classify", "image/gif", GIF))
    assert best(address) in trained.classes
