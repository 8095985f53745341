"""Official weights by name: downloaded once, converted without running their pickle, checked and kept in the cache."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lipsformer.system.atomic import atomic_write, locked, sha256_of
from lipsformer.system.console import say
from lipsformer.system.errors import GateError, InputError
from lipsformer.system.hardware import cache_folder

__all__ = ["OFFICIAL", "FetchedWeights", "OfficialWeights", "check_sha256", "fetch_official", "official_checkpoint"]

FOLDER_VARIABLE = "LIPSFORMER_WEIGHTS"
LARGEST = 2 * 2**30  # bytes; the official file also has the optimizer's state
PIN_NAME = "source.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class OfficialWeights:
    """A published checkpoint of the official code.

    `variant` is the configuration that it must have, `classes` the file of its class names in order, and `top1` the
    published accuracy on `dataset`, a fraction.
    """

    url: str
    variant: str
    classes: Path
    dataset: str
    top1: float

    @property
    def file_name(self) -> str:
        return self.url.rpartition("/")[2]


OFFICIAL = {
    "lipsformer_swin_tiny.in1k": OfficialWeights(
        url="https://github.com/cyh1112/LipsFormer/releases/download/checkpoint/lipsformer-swin-tiny.pth",
        variant="lipsformer_swin_tiny",
        classes=Path(__file__).parent / "weights" / "imagenet1k_classes.txt",
        dataset="ImageNet-1k",
        top1=0.8270,
    )
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class FetchedWeights:
    """A checkpoint on this machine, and the SHA-256 of the file that was fetched, from which it may be converted."""

    checkpoint: Path
    sha256: str


def fetch_official(name: str, sha256: str | None = None) -> FetchedWeights:
    """The checkpoint of official weights; at the first call it is downloaded, or taken from $LIPSFORMER_WEIGHTS.

    That folder may have `NAME.safetensors`, which is used where it is, or the official file. If the variable is set,
    nothing is downloaded. The SHA-256 of the first official file is pinned: later only the same file is accepted.

    Args:
        name: a key of `OFFICIAL`.
        sha256: the SHA-256 that the official file must have, hexadecimal.

    Raises:
        InputError: if the file cannot be downloaded, or is not the checkpoint that `name` stands for.
        GateError: if its SHA-256 is not `sha256`, or a different one than before.
    """
    weights, checkpoint = OFFICIAL[name], official_checkpoint(name)
    if checkpoint is None:
        checkpoint = _cached(name)
        with locked(checkpoint.parent, f"another process fetches {name}; waiting for it"):
            if not checkpoint.is_file():
                with _official_file(name, weights, checkpoint.parent) as source:
                    _admit(name, weights, source, checkpoint, sha256)
    _check_kept(name, checkpoint)
    pinned = _pinned(checkpoint.parent) if checkpoint == _cached(name) else None
    found = pinned or sha256_of(checkpoint)  # the user's own
    if sha256 is not None:
        check_sha256(f"{name}: {weights.file_name if pinned else checkpoint}", found, sha256)
    return FetchedWeights(checkpoint=checkpoint, sha256=found)


def official_checkpoint(name: str) -> Path | None:
    """The checkpoint of official weights if no download or conversion is needed: the user's, else that in the cache."""
    by_hand = Path(os.environ.get(FOLDER_VARIABLE) or os.devnull, f"{name}.safetensors")
    return next((path for path in (by_hand, _cached(name)) if path.is_file()), None)


def _cached(name: str) -> Path:
    return cache_folder() / "weights" / name / f"{name}.safetensors"


def _check_kept(name: str, checkpoint: Path) -> None:
    """Checks what is kept under `name` since an earlier call, or was put there by hand."""
    from lipsformer.model.variants import make_config

    from .header import open_checkpoint, parse_header

    remedy = "remove it to fetch the weights again" if checkpoint == _cached(name) else "put the right one there"
    try:
        with open_checkpoint(checkpoint) as file:
            config = parse_header(checkpoint, file).config
    except InputError as error:
        raise InputError(f"{name}: {error}; {remedy}") from None
    if config != make_config(OFFICIAL[name].variant):
        raise InputError(f"{name}: {checkpoint} is a different model; {remedy}")


def check_sha256(what: str, found: str, demanded: str) -> None:
    """Compares a SHA-256 with the one that the user demands.

    Raises:
        GateError: if they differ.
    """
    if found != demanded.lower():
        raise GateError(
            f"{what} has SHA-256 {found}, not {demanded.lower()} as demanded; get the file again or check --sha256"
        )


@contextlib.contextmanager
def _official_file(name: str, weights: OfficialWeights, folder: Path) -> Iterator[Path]:
    """The official file: the user's, or a download that is removed at the end."""
    if by_hand := os.environ.get(FOLDER_VARIABLE):
        source = Path(by_hand, weights.file_name)
        if not source.is_file():
            raise InputError(
                f"{by_hand}: the folder of ${FOLDER_VARIABLE} has no {weights.file_name} and no {name}.safetensors; "
                f"put one there ({weights.url}), or unset the variable to download it"
            )
        yield source
        return
    from lipsformer.system.download import DownloadError
    from lipsformer.system.resumable_download import download_resumable

    source = folder / weights.file_name
    try:
        download_resumable(weights.url, source, limit=LARGEST)
    except DownloadError as error:
        raise InputError(
            f"{name}: {error}; or get {weights.file_name} another way and set {FOLDER_VARIABLE} to its folder"
        ) from None
    try:
        yield source
    finally:
        source.unlink(missing_ok=True)


def _admit(name: str, weights: OfficialWeights, source: Path, checkpoint: Path, demanded: str | None) -> None:
    """Checks the official file, converts it to `checkpoint` and pins its SHA-256."""
    from lipsformer.model.variants import make_config

    from .convert import convert

    found, pinned = sha256_of(source), _pinned(checkpoint.parent)
    if demanded is not None:
        check_sha256(f"{name}: {source.name}", found, demanded)
    if pinned is not None and found != pinned:
        raise GateError(
            f"{name}: {source.name} has SHA-256 {found}, but the one fetched before had {pinned}; "
            f"if you trust the new one, remove {checkpoint.parent / PIN_NAME}"
        )
    draft = checkpoint.with_name("unchecked.safetensors")
    try:
        try:
            convert(source, draft, classes=weights.classes, expected=make_config(weights.variant))
        except InputError as error:
            raise InputError(
                f"{name}: {source.name} is not its checkpoint ({error}); get it again: {weights.url}"
            ) from None
        pin: dict[str, Any] = {"url": weights.url, "sha256": found, "bytes": source.stat().st_size}
        with atomic_write(checkpoint.parent / PIN_NAME) as file:
            file.write_text(json.dumps(pin, indent=2) + "\n", encoding="utf-8")
        draft.replace(checkpoint)
    finally:
        draft.unlink(missing_ok=True)
    say(f"{name}: {source.name} with SHA-256 {found} is converted to {checkpoint}; this hash is pinned", always=True)


def _pinned(folder: Path) -> str | None:
    """The SHA-256 of the official file that was fetched first; None if none was."""
    path = folder / PIN_NAME
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["sha256"]) if path.is_file() else None
    except (ValueError, LookupError, TypeError):
        raise InputError(f"{path}: damaged; remove the folder {folder} to fetch the weights again") from None
