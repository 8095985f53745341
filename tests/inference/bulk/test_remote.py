"""Bulk prediction reads object stores and web servers, over real sockets."""

from __future__ import annotations

import os
import signal
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lipsformer.images.samples import SAMPLES
from lipsformer.inference.bulk import remote, stores
from lipsformer.inference.bulk.sources import list_images
from lipsformer.system.errors import InputError, StoppedError
from tests.support.bulk import bulk, json_rows, watched
from tests.support.http.file_server import file_server
from tests.support.http.object_store import ObjectStore, object_store
from tests.support.trained import Trained

PHOTOS = {path.name: path.read_bytes() for path in sorted(SAMPLES.glob("*.jpg"))}


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    stores._store.cache_clear()
    with object_store(monkeypatch) as server:
        yield server
    stores._store.cache_clear()


def test_a_prefix_gives_the_rows_of_the_same_folder(
    store: ObjectStore, trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store.page = 4
    store.objects = {f"in/{name}": content for name, content in PHOTOS.items()}
    store.objects |= {
        "in/a b&é.jpg": next(iter(PHOTOS.values())),
        "in/notes.txt": b"text",
        "input.jpg": b"not asked for",
    }
    folder = tmp_path / "in"
    folder.mkdir()
    for key, content in store.objects.items():
        if key.startswith("in/"):
            (folder / key.removeprefix("in/")).write_bytes(content)
    predictor, _ = watched(trained.bundle)
    local = json_rows(bulk(predictor, tmp_path / "local.jsonl", folder))
    far = json_rows(bulk(predictor, tmp_path / "far.jsonl", "s3://photos/in"))
    assert store.pages > 2
    assert [row["name"] for row in far] == [f"s3://photos/in/{Path(row['name']).name}" for row in local]
    assert [row | {"name": ""} for row in far] == [row | {"name": ""} for row in local]
    assert "s3://photos/in: 1 entry left out, with no image extension: in/notes.txt" in capsys.readouterr().err


def test_what_cannot_be_fetched_is_a_row(store: ObjectStore, trained: Trained, tmp_path: Path) -> None:
    store.objects = {"good.jpg": next(iter(PHOTOS.values())), "denied.jpg": b"", "empty.jpg": b""}
    store.denied = {"denied.jpg"}
    predictor, _ = watched(trained.bundle)
    names = [f"s3://photos/{name}.jpg" for name in ("good", "denied", "gone", "empty")]
    rows = json_rows(bulk(predictor, tmp_path / "rows.jsonl", *names))
    assert [row["status"] for row in rows] == ["ok", "unreadable", "missing", rows[3]["status"]]
    assert rows[3]["status"] not in ("ok", "missing")
    assert "cannot be fetched" in rows[1]["detail"]
    assert rows[1]["detail"].endswith("check the URL, the credentials and the network")


def test_too_large_an_object_is_not_fetched(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.objects = {"large.jpg": bytes(5000)}
    monkeypatch.setattr(remote, "check_bytes", lambda size, label: (_ for _ in ()).throw(InputError(f"{size} bytes")))
    with pytest.raises(InputError, match="5000 bytes"):
        remote.read_url("s3://photos/large.jpg")


def test_a_store_that_cannot_be_listed_stops_with_one_line(store: ObjectStore) -> None:
    store.denied = {""}
    message = r"^s3://photos/in: cannot be listed \(.*\); check the URL, the credentials and the network$"
    with pytest.raises(InputError, match=message):
        list(list_images(["s3://photos/in"]))


def test_100_000_names_do_not_stall_the_start(
    store: ObjectStore, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = next(iter(PHOTOS.values()))
    store.objects = {f"{number:06d}.jpg": photo for number in range(100_000)}
    store.held = 4

    def stop(batch: int) -> None:
        store.released.set()  # the fourth page of a hundred waits for the first batch
        if batch == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(StoppedError):
        bulk(watched(trained.bundle, stop)[0], tmp_path / "rows.jsonl", "s3://photos")
    assert store.released.is_set()
    store.held = None
    names = [image.name for image in list_images(["s3://photos"])]
    assert names == [f"s3://photos/{number:06d}.jpg" for number in range(100_000)]


def test_without_credentials_it_says_what_to_set(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.denied = {"latest/api/token"}  # which machines of the cloud answer
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(InputError, match=r"^s3://photos/in: there are no credentials for it; set AWS_ACCESS_KEY"):
        list(list_images(["s3://photos/in"]))
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with pytest.raises(InputError, match=r"^az://photos: there are no credentials for it; set AZURE_STORAGE_AC"):
        list(list_images(["az://photos/in"]))


def test_an_azure_url_begins_with_the_container(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    azure, root, path = stores.place("az://photos/in/a.jpg")
    assert (azure.config["container_name"], azure.prefix, root, path) == ("photos", None, "az://photos", "in/a.jpg")


def test_without_obstore_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    stores._store.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "obstore", None)
    with pytest.raises(InputError, match=r"obstore is not installed; pip install 'lipsformer\[cloud\]'"):
        list(list_images(["gs://photos/in"]))


def test_web_addresses_are_images_or_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("LIPSFORMER_CACHE", str(tmp_path / "cache"))
    name, content = next(iter(PHOTOS.items()))
    with file_server() as server:
        server.content = content
        (image,) = list_images([f"{server.url}/{name}?signature=secret"])
        assert (image.name, image.read()) == (f"{server.url}/{name}", content)
        server.status = 404
        refused = image.read()
        assert not isinstance(refused, bytes)
        assert refused.status == "missing"
        server.status = 500
        refused = image.read()
        assert not isinstance(refused, bytes)
        assert refused.status == "unreadable"
        assert "secret" not in refused.detail
        server.status = None
        with tarfile.open(tmp_path / "shard.tar", "w") as shard:
            shard.add(SAMPLES / name, name)
        server.content = (tmp_path / "shard.tar").read_bytes()
        (member,) = list_images([f"{server.url}/shard.tar"])
        assert member.read() == content
        assert member.name.endswith(f"shard.tar:{name}")


def test_urls_come_on_stdin_too(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.objects = {"a.jpg": b"a"}
    reading, writing = os.pipe()
    os.write(writing, b"s3://photos/a.jpg\n")
    os.close(writing)
    with os.fdopen(reading) as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        (image,) = list_images(["-"])
    assert (image.name, image.read()) == ("s3://photos/a.jpg", b"a")
