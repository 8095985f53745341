"""API keys: who is let in, and how keys are changed while the server runs."""

from __future__ import annotations

import base64
from pathlib import Path

import httpx
import pytest

from lipsformer.images.samples import SAMPLES
from lipsformer.serving.http import auth as keys_module
from lipsformer.serving.http.auth import KeyRing, given_keys
from lipsformer.system.errors import InputError
from tests.support.http.server import KEY, Keyed

FIRST, SECOND = "first-key-0123456789", "second-key-0123456789"


class Clock:
    now = 0.0

    @classmethod
    def monotonic(cls) -> float:
        return cls.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> type[Clock]:
    monkeypatch.setattr(keys_module, "time", Clock)
    Clock.now = 100.0
    return Clock


def test_keys_are_read_from_lines(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# staff\n{FIRST}\n\n  {SECOND}  \n")
    ring = KeyRing(path)
    assert ring.allows([FIRST])
    assert ring.allows([SECOND])
    assert ring.allows(["wrong", SECOND])
    assert not ring.allows([])
    for wrong in ("", "# staff", FIRST[:-1], FIRST + "x", FIRST.upper(), "\udcff"):
        assert not ring.allows([wrong])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no key in it"),
        (b"# none\n", "no key in it"),
        (b"short\n", "shorter than 16"),
        (b"\xff\xfe" * 20, "not UTF-8"),
    ],
)
def test_a_file_without_good_keys_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "keys"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        KeyRing(path)
    with pytest.raises(InputError, match="No such file"):
        KeyRing(tmp_path / "none")


def test_keys_change_while_the_server_runs(tmp_path: Path, clock: type[Clock]) -> None:
    path = tmp_path / "keys"
    path.write_text(FIRST)
    ring = KeyRing(path)
    path.write_text(f"{SECOND}\n")
    assert ring.allows([FIRST])  # it is looked at once a second
    clock.now += 1
    assert not ring.allows([FIRST])
    assert ring.allows([SECOND])
    path.unlink()
    clock.now += 1
    assert not ring.allows([SECOND])  # no file, no entry
    path.write_text(f"{FIRST}\n{SECOND}\n")
    clock.now += 1
    assert ring.allows([FIRST])
    assert ring.allows([SECOND])


def test_a_key_comes_in_one_of_three_ways() -> None:
    basic = "basic " + base64.b64encode(b"anyone:" + FIRST.encode()).decode()
    for name, value in (("authorization", f"Bearer {FIRST}"), ("x-api-key", FIRST), ("authorization", basic)):
        assert given_keys([(b"accept", b"*/*"), (name.encode(), value.encode())]) == [FIRST]
    for value in ("Basic !", "Basic /w==", "Digest x", FIRST):
        assert given_keys([(b"authorization", value.encode())]) == []
    both = [(b"authorization", b"Bearer of-a-proxy"), (b"x-api-key", FIRST.encode())]
    assert given_keys(both) == ["of-a-proxy", FIRST]


def test_with_keys_all_but_health_is_closed(keyed: Keyed) -> None:
    photo = (SAMPLES / "Kaiser.jpg").read_bytes()
    kind = {"Content-Type": "image/jpeg"}
    with httpx.Client(base_url=keyed.url) as client:
        for health in ("/livez", "/readyz", "/healthz"):
            assert client.get(health).status_code == 200
        for closed in ("/", "/page.js", "/info", "/metrics", "/openapi.json", "/classify", "/no-such-path"):
            answer = client.get(closed)
            assert (answer.status_code, answer.json()["reason"]) == (401, "unauthorised")
            assert "Basic" in answer.headers["www-authenticate"]
        none = client.post("/classify", content=photo, headers=kind)
        assert (none.status_code, none.json()["detail"].partition(":")[0]) == (401, "a key is needed")
        for wrong in ({"X-API-Key": KEY[1:]}, {"Authorization": f"Bearer {KEY}x"}, {"Authorization": "Basic eDp5"}):
            detail = client.post("/classify", content=photo, headers=kind | wrong).json()["detail"]
            assert detail.startswith("the key that was sent is not valid: send 'Authorization")
            assert KEY[1:] not in detail
        for header in ({"Authorization": f"Bearer {KEY}"}, {"X-API-Key": KEY}):
            assert client.post("/classify", content=photo, headers=kind | header).status_code == 200
        assert client.get("/", auth=("", KEY)).headers["content-type"].startswith("text/html")
        assert client.get("/openapi.json", auth=("", KEY)).json()["security"]
    assert KEY not in keyed.log.read_text()
