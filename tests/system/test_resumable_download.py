"""Large downloads resume where they broke off, and never end in a mixed, cut or oversized file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lipsformer.system import resumable_download as module
from lipsformer.system.download import DownloadError
from lipsformer.system.errors import InputError
from lipsformer.system.resumable_download import download_resumable
from tests.support.http.file_server import FileServer, file_server

CONTENT = b"".join(number.to_bytes(3, "big") for number in range(100_000))
LIMIT = 1_000_000


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setattr(module, "WAIT_SECONDS", 0)
    with file_server() as server:
        server.content = CONTENT
        yield server


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def refusal(server: FileServer, target: Path, path: str = "/a.pth?token=secret") -> str:
    with pytest.raises(InputError) as failure:
        download_resumable(server.url + path, target, limit=LIMIT)
    message = str(failure.value)
    assert "\n" not in message
    assert "secret" not in message
    return message


def test_a_whole_download_takes_one_request(server: FileServer, tmp_path: Path) -> None:
    download_resumable(f"{server.url}/a.pth", tmp_path / "new" / "a.pth", limit=LIMIT)
    assert (tmp_path / "new" / "a.pth").read_bytes() == CONTENT
    assert names(tmp_path / "new") == ["a.pth"]
    assert server.requests == [("/a.pth", None)]


def test_a_broken_connection_resumes_in_the_same_run(server: FileServer, tmp_path: Path) -> None:
    server.cuts = [100_000, 0, 50_000]
    download_resumable(f"{server.url}/a.pth", tmp_path / "a.pth", limit=LIMIT)
    assert (tmp_path / "a.pth").read_bytes() == CONTENT
    assert [asked for _, asked in server.requests] == [None, "bytes=100000-", "bytes=100000-", "bytes=150000-"]


def test_a_later_run_resumes(server: FileServer, tmp_path: Path) -> None:
    server.cuts = [100_000, 0, 0, 0, 0]
    assert "cut off after 100,000 of 300,000 bytes; run it again to resume" in refusal(server, tmp_path / "a.pth")
    assert names(tmp_path) == ["a.pth.part", "a.pth.part.version"]
    server.requests.clear()
    download_resumable(f"{server.url}/a.pth", tmp_path / "a.pth", limit=LIMIT)
    assert (tmp_path / "a.pth").read_bytes() == CONTENT
    assert server.requests == [("/a.pth", "bytes=100000-")]
    assert names(tmp_path) == ["a.pth"]


@pytest.mark.parametrize(("etag", "ranges"), [("", True), ('W/"v1"', True), ('"v1"', False)])
def test_where_resuming_is_not_possible_it_starts_over(
    etag: str, ranges: bool, server: FileServer, tmp_path: Path
) -> None:
    server.etag, server.ranges, server.cuts = etag, ranges, [100_000]
    download_resumable(f"{server.url}/a.pth", tmp_path / "a.pth", limit=LIMIT)
    assert (tmp_path / "a.pth").read_bytes() == CONTENT


def test_a_file_that_changes_meanwhile_is_not_mixed(server: FileServer, tmp_path: Path) -> None:
    server.cuts = [100_000, 0, 0, 0, 0]
    refusal(server, tmp_path / "a.pth")
    server.content, server.etag = CONTENT[::-1], '"v2"'
    download_resumable(f"{server.url}/a.pth", tmp_path / "a.pth", limit=LIMIT)
    assert (tmp_path / "a.pth").read_bytes() == CONTENT[::-1]


def test_a_changed_file_is_seen_if_the_server_ignores_if_range(server: FileServer, tmp_path: Path) -> None:
    server.cuts = [100_000]
    server.headers = {"ETag": '"v1"'}
    part = tmp_path / "a.pth.part"
    part.write_bytes(b"older" * 1000)
    part.with_name("a.pth.part.version").write_text('"v0"')
    server.etag = '"v0"'  # what it compares with; what it sends is v1
    download_resumable(f"{server.url}/a.pth", tmp_path / "a.pth", limit=LIMIT)
    assert (tmp_path / "a.pth").read_bytes() == CONTENT


def test_a_shorter_file_than_before_starts_over(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "a.pth.part").write_bytes(bytes(400_000))
    (tmp_path / "a.pth.part.version").write_text('"v1"')
    download_resumable(f"{server.url}/a.pth", tmp_path / "a.pth", limit=LIMIT)
    assert (tmp_path / "a.pth").read_bytes() == CONTENT


def test_a_length_that_is_too_long_is_seen_by_the_next_request(server: FileServer, tmp_path: Path) -> None:
    server.headers = {"Content-Length": "400000"}
    download_resumable(f"{server.url}/a.pth", tmp_path / "a.pth", limit=LIMIT)
    assert (tmp_path / "a.pth").read_bytes() == CONTENT
    assert server.requests == [("/a.pth", None), ("/a.pth", "bytes=300000-")]


def test_a_length_that_is_too_long_is_reported_where_no_request_can_resume(server: FileServer, tmp_path: Path) -> None:
    server.headers, server.etag = {"Content-Length": "400000"}, ""
    assert "cut off after 300,000 of 400,000 bytes" in refusal(server, tmp_path / "a.pth")
    assert "a.pth" not in names(tmp_path)


@pytest.mark.parametrize("sized", [True, False])
def test_a_file_that_is_too_large_is_reported(sized: bool, server: FileServer, tmp_path: Path) -> None:
    server.content = bytes(LIMIT + 1)
    if not sized:
        server.headers = {"Content-Length": ""}  # none that can be read: it ends with the connection
    assert "more than the 1,000,000" in refusal(server, tmp_path / "a.pth")
    assert [name for name in names(tmp_path) if not name.endswith(".version")] == []


def test_another_range_than_requested_is_reported(server: FileServer, tmp_path: Path) -> None:
    server.cuts = [100_000]
    server.headers = {"Content-Range": "bytes 5-9/300000"}
    assert "another part of the file" in refusal(server, tmp_path / "a.pth")


def test_a_web_page_is_reported(server: FileServer, tmp_path: Path) -> None:
    server.headers = {"Content-Type": "text/html; charset=utf-8"}
    assert "a web page; is a login or a proxy in the way?" in refusal(server, tmp_path / "a.pth")
    assert names(tmp_path) == []


def test_redirects_are_followed_with_the_range(server: FileServer, tmp_path: Path) -> None:
    server.redirects = {"/a.pth": "/b.pth"}
    server.cuts = [100_000]
    download_resumable(f"{server.url}/a.pth", tmp_path / "a.pth", limit=LIMIT)
    assert (tmp_path / "a.pth").read_bytes() == CONTENT
    assert server.requests[-1] == ("/b.pth", "bytes=100000-")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("/a.pth", "302 a redirect without end"),
        ("file:///etc/passwd", "302 "),
        ("ftp://127.0.0.1/x", "cannot be reached"),
    ],
)
def test_bad_redirects_are_reported(address: str, message: str, server: FileServer, tmp_path: Path) -> None:
    server.redirects = {"/a.pth": address}
    assert message in refusal(server, tmp_path / "a.pth", "/a.pth")
    assert names(tmp_path) == []


@pytest.mark.parametrize("status", [403, 404, 500])
def test_the_status_is_reported(status: int, server: FileServer, tmp_path: Path) -> None:
    server.status = status
    with pytest.raises(DownloadError, match=rf"a\.pth: the server answers {status} ") as failure:
        download_resumable(f"{server.url}/a.pth", tmp_path / "a.pth", limit=LIMIT)
    assert failure.value.status == status
    assert len(server.requests) == 1


def test_a_folder_that_cannot_be_written_is_reported(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "cannot be written" in refusal(server, tmp_path / "file" / "a.pth")
