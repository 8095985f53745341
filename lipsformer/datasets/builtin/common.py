"""What the built-in datasets share: their description, downloading, verification and writing."""

from __future__ import annotations

import dataclasses
import io
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lipsformer.system.atomic import sha256_of
from lipsformer.system.console import track
from lipsformer.system.errors import InputError

__all__ = ["BuiltinDataset", "Sample", "checked_sha256", "encode_png", "run_downloader", "write_samples"]

DOWNLOAD_TIMEOUT_SECONDS = 1800

Sample = tuple[str, str, bytes]  # split, class, encoded image


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuiltinDataset:
    """A built-in dataset: `summary` describes it for people, `images` is how many samples `read` yields."""

    summary: str
    images: int
    download: Callable[[Path], Path]  # downloads into a scratch folder and returns the source for `read`
    read: Callable[[Path], Iterator[Sample]]  # verifies a source and yields its samples
    extra: str | None = None  # that reading needs


def write_samples(folder: Path, samples: Iterable[Sample], title: str, total: int) -> None:
    """Writes samples to `folder`/<split>/<class>/NNNNN.jpg or .png, with a progress bar of `total` steps."""
    counts: Counter[str] = Counter()
    with track(title, total) as advance:
        for split, label, image in samples:
            suffix = ".jpg" if image.startswith(b"\xff\xd8") else ".png"
            target = folder / split / label / f"{counts[split]:05d}{suffix}"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(image)
            counts[split] += 1
            advance(1, "")


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """A lossless PNG of (H, W) grayscale or (H, W, 3) RGB."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def run_downloader(command: list[str], folder: Path, fix: str) -> None:
    """Runs a download command in `folder`.

    Raises:
        InputError: if it fails; the message ends with `fix`.
    """
    tool = " ".join([Path(command[0]).name, *command[1:]])
    try:
        subprocess.run(  # noqa: S603 - the commands are constants of this package
            command, cwd=folder, check=True, capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT_SECONDS
        )
    except FileNotFoundError:
        raise InputError(f"`{command[0]}`, which downloads this dataset, is not installed; {fix}") from None
    except subprocess.TimeoutExpired:
        raise InputError(f"`{tool}` took more than {DOWNLOAD_TIMEOUT_SECONDS} s; {fix}") from None
    except subprocess.CalledProcessError as error:
        lines = [line.strip() for line in (error.stderr or error.stdout).splitlines() if line.strip()]
        errors = [line for line in lines if "err" in line.lower()] or lines or [f"exit status {error.returncode}"]
        raise InputError(f"`{tool}` failed ({errors[-1][:200]}); {fix}") from None


def checked_sha256(path: Path, fix: str) -> str:
    """The SHA-256 of a source file.

    Raises:
        InputError: if it cannot be read; the message ends with `fix`.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file; {fix}")
    try:
        return sha256_of(path)
    except InputError as error:
        raise InputError(f"{error}; {fix}") from None
