"""The manifest of a bundle: what `lipsformer export` promises and every consumer checks before it trusts a file."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from .errors import GateError, InputError
from .outputs import sha256_of
from .preprocessing import Preprocessing

__all__ = ["MANIFEST_NAME", "BundleFile", "Manifest", "class_names", "read_manifest"]

MANIFEST_NAME = "manifest.json"
FORMAT = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class BundleFile:
    """One file of a bundle: `kind` is "onnx" for graphs and "report" for what documents them."""

    name: str
    kind: str
    sha256: str
    size: int
    precision: str | None = None
    runtime: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or Path(self.name).name != self.name:
            raise ValueError(f"{self.name!r} is not the name of a file in the bundle")

    @classmethod
    def describe(cls, path: Path, kind: str, *, precision: str | None = None, runtime: str | None = None) -> Self:
        """Measures a file that lies in the bundle."""
        return cls(
            name=path.name,
            kind=kind,
            sha256=sha256_of(path),
            size=path.stat().st_size,
            precision=precision,
            runtime=runtime,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything about a bundle: classes, preprocessing, files with their hashes, and the parity summary.

    `max_batch` is the largest batch that parity was shown for.
    """

    model: Mapping[str, Any]
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    max_batch: int
    files: tuple[BundleFile, ...]
    checkpoint_sha256: str
    metrics: Mapping[str, Any]
    parity: Mapping[str, Any]
    versions: Mapping[str, str]
    created: str

    def __post_init__(self) -> None:
        for name in ("model", "metrics", "parity", "versions"):
            if not isinstance(getattr(self, name), Mapping):
                raise TypeError(f"{name} is not a table")
        if type(self.max_batch) is not int or self.max_batch < 1:
            raise TypeError("max_batch is not a whole number of at least 1")

    def write(self, folder: Path) -> None:
        """Writes `manifest.json` into `folder`."""
        data = {"format": FORMAT, **dataclasses.asdict(self)}
        (folder / MANIFEST_NAME).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")

    def graph(self) -> BundleFile:
        """The graph that runs in ONNX Runtime."""
        return next(file for file in self.files if file.kind == "onnx")


def class_names(value: object) -> tuple[str, ...]:
    """Class names as read from a file.

    Raises:
        TypeError: if `value` is not a list of texts.
    """
    if not isinstance(value, list) or not all(isinstance(label, str) for label in value):
        raise TypeError("its class names are not a list of texts")
    return tuple(value)


def read_manifest(bundle: Path) -> Manifest:
    """Reads a bundle's manifest and checks the hash of every file it names.

    Raises:
        InputError: if `bundle` is not a bundle or its manifest cannot be read.
        GateError: if a file is missing or its hash differs.
    """
    path = bundle / MANIFEST_NAME
    if not path.is_file():
        raise InputError(f"{bundle}: not a bundle (no {MANIFEST_NAME}); make one with `lipsformer export`")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        found = data.pop("format")
        manifest = _parse(data) if found == FORMAT else None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, OSError) as error:
        reason = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
        raise InputError(f"{path}: damaged manifest ({reason}); export the bundle again") from None
    if manifest is None:
        raise InputError(f"{path}: bundle format {found}, this version reads {FORMAT}; export it again")
    for file in manifest.files:
        _check(bundle, file)
    return manifest


def _parse(data: dict[str, Any]) -> Manifest:
    manifest = Manifest(
        **{
            **data,
            "classes": class_names(data["classes"]),
            "preprocessing": Preprocessing.from_dict(data["preprocessing"]),
            "files": tuple(BundleFile(**file) for file in data["files"]),
        }
    )
    if not any(file.kind == "onnx" for file in manifest.files):
        raise ValueError("it names no graph")
    return manifest


def _check(bundle: Path, file: BundleFile) -> None:
    path = bundle / file.name
    if not path.is_file():
        raise GateError(f"{path}: missing from the bundle; export it again")
    if sha256_of(path) != file.sha256:
        raise GateError(f"{path}: its SHA-256 is not the manifest's: damaged or changed; export the bundle again")
