"""Shards by URL: downloaded once, whole or not at all, and every server failure is reported."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from lipsformer.datasets import open_dataset, resolve_dataset
from lipsformer.datasets.shards import remote_shards as remote
from lipsformer.system import download as download_module
from lipsformer.system.download import DownloadError, download
from lipsformer.system.errors import InputError
from tests.support.http.running import running
from tests.support.shards import members, write_shard


class Handler(http.server.BaseHTTPRequestHandler):
    files: ClassVar[dict[str, bytes]] = {}
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        path = self.path.partition("?")[0]
        if path == "/moved.tar":
            self.send_response(302)
            self.send_header("Location", "/shards/train-000.tar")
            self.end_headers()
            return
        if path not in self.files:
            self.send_error(500 if "broken" in path else 404)
            return
        content = self.files[path]
        self.send_response(200)
        if "unsized" not in path:
            self.send_header("Content-Length", str(len(content) + (1000 if "cut" in path else 0)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server of two training shards and one to validate on, below /shards; `Handler` has its files and its log."""
    made = tmp_path / "made"
    shards = {
        "train-000": members(a=0, b=1),
        "train-001": members(c=1),
        "val-000": members(d=1),
    }
    monkeypatch.setattr(Handler, "asked", [])
    monkeypatch.setattr(
        Handler,
        "files",
        {f"/shards/{n}.tar": write_shard(made / f"{n}.tar", content).read_bytes() for n, content in shards.items()},
    )
    monkeypatch.setenv("LIPSFORMER_CACHE", str(tmp_path / "cache"))
    with running(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as url:
        yield url


PATTERN = "/shards/{train-{000..001},val-000}.tar"


def refusal(url: str) -> str:
    with pytest.raises(InputError) as failure:
        resolve_dataset(url)
    assert "\n" not in str(failure.value)
    return str(failure.value)


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_shards_are_downloaded_once(url: str, tmp_path: Path) -> None:
    Handler.files["/shards/classes.txt"] = b"cat\ndog"
    data = open_dataset(resolve_dataset(url + PATTERN))
    assert data.classes == ("cat", "dog")
    assert (data.train.labels.tolist(), data.validation.labels.tolist()) == ([0, 1, 1], [1])
    assert data.train.open(2).size == (8, 8)
    assert (tmp_path / "cache" / "shards" / f"127.0.0.1_{url.rpartition(':')[2]}" / "shards").is_dir()
    asked = list(Handler.asked)
    assert len(asked) == len(set(asked)) == 4
    again = open_dataset(resolve_dataset(url + PATTERN))
    assert Handler.asked == asked
    assert list(again.train.names()) == list(data.train.names())


def test_class_names_may_be_missing_or_json(url: str) -> None:
    assert open_dataset(resolve_dataset(url + PATTERN)).classes == ("class 0", "class 1")
    assert Handler.asked[:2] == ["/shards/classes.txt", "/shards/classes.json"]


def test_only_missing_shards_are_downloaded(url: str) -> None:
    open_dataset(resolve_dataset(url + PATTERN))
    Handler.asked.clear()
    Handler.files["/shards/train-002.tar"] = Handler.files["/shards/train-001.tar"]
    data = open_dataset(resolve_dataset(url + "/shards/{train-{000..002},val-000}.tar"))
    assert [path for path in Handler.asked if path.endswith(".tar")] == ["/shards/train-002.tar"]
    assert len(data.train) == 4
    assert len(open_dataset(resolve_dataset(url + "/shards/{train-000,val-000}.tar")).train) == 2


def test_a_query_is_sent_and_never_shown(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    resolve_dataset(url + PATTERN + "?token=secret")
    assert all(path.endswith("?token=secret") for path in Handler.asked)
    assert "secret" not in refusal(url + "/shards/none.tar?token=secret")
    assert "secret" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/shards/{train-000,none}.tar", "/shards/none.tar: the server answers 404"),
        ("/broken/{a,b}.tar", "/broken/classes.txt: the server answers 500"),
        ("/shards/cut.tar", "cut.tar: cut off after 1536 of 2536 bytes; run it again"),
        ("/shards/train-{0..1", "unbalanced '{'"),
        ("/shards/train-000.tar.gz", "not a .tar shard; give one"),
        ("/shards/", "not a .tar shard; give one"),
        ("/../{a,b}.tar", "not a plain URL"),
    ],
)
def test_failures_are_reported_and_leave_no_partial_file(path: str, message: str, url: str, tmp_path: Path) -> None:
    Handler.files["/shards/cut.tar"] = Handler.files["/shards/train-000.tar"][:1536]
    assert message in refusal(url + path + (".tar" if path.endswith("0..1") else ""))
    assert set(leftovers(tmp_path / "cache")) <= {"train-000.tar"}


def test_a_truncated_shard_is_reported_when_it_is_listed(url: str) -> None:
    Handler.files["/shards/unsized.tar"] = Handler.files["/shards/train-000.tar"][:1600]
    with pytest.raises(InputError, match=r"unsized\.tar: not a complete tar file .*; fetch or write it again"):
        open_dataset(resolve_dataset(url + "/shards/unsized.tar"))


def test_a_failure_stops_the_rest(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "AT_ONCE", 1)
    refusal(url + "/shards/{none,train-000,train-001,val-000}.tar")
    assert len([path for path in Handler.asked if "train" in path or "val" in path]) <= 2


def test_an_unreachable_server_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIPSFORMER_CACHE", str(tmp_path / "cache"))
    assert "http://127.0.0.1:9/classes.txt: cannot be reached" in refusal("http://127.0.0.1:9/{a,b}.tar")
    assert leftovers(tmp_path) == []


def test_a_download_follows_redirects_and_can_be_canceled(url: str, tmp_path: Path) -> None:
    download(url + "/moved.tar", tmp_path / "a.tar")
    assert (tmp_path / "a.tar").read_bytes() == Handler.files["/shards/train-000.tar"]
    with pytest.raises(DownloadError, match=r"val-000\.tar: canceled after \d+ bytes"):
        download(url + "/shards/val-000.tar", tmp_path / "b.tar", canceled=lambda: True)
    for address in ("file:///etc/passwd", "ftp://127.0.0.1/a", "nonsense"):
        with pytest.raises(DownloadError, match="not an http or https URL"):
            download(address, tmp_path / "b.tar")
    assert not (tmp_path / "b.tar").exists()


def test_a_server_that_stalls_is_reported(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download_module, "STALL_TIMEOUT_SECONDS", 0.2)
    released = threading.Event()
    monkeypatch.setattr(Handler, "do_GET", lambda self: (self.send_response(200), self.end_headers(), released.wait(9)))
    with pytest.raises(DownloadError, match=r"a\.tar: cut off \(.*timed out.*\); run it again"):
        download(url + "/a.tar", tmp_path / "a.tar")
    released.set()
    assert leftovers(tmp_path / "cache") == []


def test_a_target_that_cannot_be_written_is_reported(url: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot be written"):
        download(url + "/shards/val-000.tar", tmp_path / "file" / "a.tar")


def test_local_patterns_are_passed_on(tmp_path: Path) -> None:
    pattern = str(tmp_path / "train-{000..146}.tar")
    assert str(resolve_dataset(pattern)) == pattern
