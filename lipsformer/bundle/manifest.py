"""The manifest of a bundle: what `lipsformer export` promises and every consumer checks before it trusts a file."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from lipsformer.images.preprocessing import Preprocessing
from lipsformer.system.atomic import sha256_of
from lipsformer.system.errors import GateError, InputError

__all__ = ["MANIFEST_NAME", "PRECISIONS", "TARGETS", "BundleFile", "Manifest", "class_names", "read_manifest"]

MANIFEST_NAME = "manifest.json"
FORMAT = 2
SEAL = "sha256"  # of the manifest itself

PRECISIONS = ("fp32", "fp16", "int8")
# Who runs a file. Float graphs are for ONNX Runtime and TensorRT builds from them too; int8 has a graph for each.
TARGETS = ("ort", "tensorrt", "tensorrt-rtx")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BundleFile:
    """One file of a bundle.

    `kind` is "onnx" for graphs, "engine" for what TensorRT built of one, and "report" for what documents them. Graphs
    and engines have a `target` that runs them, a `precision`, and the report of the gate that they passed (`parity`);
    an engine also says what it was `built` with: versions, GPU, batches, and the SHA-256 of its graph.
    """

    name: str
    kind: str
    sha256: str
    size: int
    target: str | None = None
    precision: str | None = None
    parity: Mapping[str, Any] | None = None
    built: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or Path(self.name).name != self.name:
            raise ValueError(f"{self.name!r} is not the name of a file in the bundle")
        if self.kind == "report":
            return
        if self.kind not in ("onnx", "engine"):
            raise ValueError(f"{self.name}: kind {self.kind!r} is not known")
        if self.target not in TARGETS or self.precision not in PRECISIONS:
            raise ValueError(f"{self.name}: target {self.target!r} or precision {self.precision!r} is not known")
        if not isinstance(self.parity, Mapping):
            raise TypeError(f"{self.name}: parity is not a table")
        if (self.kind == "engine") != isinstance(self.built, Mapping):
            raise TypeError(f"{self.name}: only an engine says what it was built with, in a table")

    @classmethod
    def describe(cls, path: Path, kind: str, **facts: Any) -> Self:
        """Measures a file that lies in the bundle; `facts` are the fields that a graph or an engine has besides."""
        return cls(name=path.name, kind=kind, sha256=sha256_of(path), size=path.stat().st_size, **facts)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything about a bundle: classes, preprocessing, and its files with their hashes and what was proved of them.

    `max_batch` is the largest batch that parity was shown for. Graphs stand in the order in which they were asked for:
    the first precision is the one that is run unless another is asked for.
    """

    model: Mapping[str, Any]
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    max_batch: int
    files: tuple[BundleFile, ...]
    checkpoint_sha256: str
    metrics: Mapping[str, Any]
    versions: Mapping[str, str]
    created: str

    def __post_init__(self) -> None:
        for name in ("model", "metrics", "versions"):
            if not isinstance(getattr(self, name), Mapping):
                raise TypeError(f"{name} is not a table")
        if type(self.max_batch) is not int or self.max_batch < 1:
            raise TypeError("max_batch is not a whole number of at least 1")

    def write(self, folder: Path) -> None:
        """Writes `manifest.json` into `folder`, with a hash of its own content."""
        data = {"format": FORMAT, **dataclasses.asdict(self)}
        (folder / MANIFEST_NAME).write_text(_sealed(data), encoding="utf-8")

    @property
    def precisions(self) -> tuple[str, ...]:
        """The precisions that ONNX Runtime has a graph for, the one that is run by default first."""
        return tuple(file.precision or "" for file in self.files if _is_ort_graph(file))

    def graph(self, precision: str | None = None) -> BundleFile:
        """The graph that runs in ONNX Runtime: the first, or the one of `precision`.

        Raises:
            InputError: if there is none of that precision.
        """
        for file in self.files:
            if _is_ort_graph(file) and precision in (None, file.precision):
                return file
        raise InputError(
            f"--precision {precision}: the bundle has {', '.join(self.precisions)}; "
            f"choose one of them, or export again with --precision {precision}"
        )

    def engines(self, precision: str) -> tuple[BundleFile, ...]:
        """The engines of a precision; each runs only where its `built` fits."""
        return tuple(file for file in self.files if file.kind == "engine" and file.precision == precision)


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
        text = path.read_text(encoding="utf-8")
        data = json.loads(text)
        found = data["format"]
        intact = found != FORMAT or text == _sealed(data)
        manifest = _parse(data) if found == FORMAT and intact else None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, OSError) as error:
        reason = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
        raise InputError(f"{path}: damaged manifest ({reason}); export the bundle again") from None
    if not intact:
        raise GateError(f"{path}: its SHA-256 is not the one it was written with: damaged or changed; export it again")
    if manifest is None:
        raise InputError(f"{path}: bundle format {found}, this version reads {FORMAT}; export it again")
    for file in manifest.files:
        _check(bundle, file)
    return manifest


def _sealed(data: Mapping[str, Any]) -> str:
    """The text of a manifest, and in it the hash of all the rest: one changed byte of it can be told."""
    content = {name: value for name, value in data.items() if name != SEAL}
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return json.dumps({**content, SEAL: digest}, indent=2) + "\n"


def _is_ort_graph(file: BundleFile) -> bool:
    return file.kind == "onnx" and file.target == "ort"


def _parse(data: dict[str, Any]) -> Manifest:
    manifest = Manifest(
        **{
            **{name: value for name, value in data.items() if name not in ("format", SEAL)},
            "classes": class_names(data["classes"]),
            "preprocessing": Preprocessing.from_dict(data["preprocessing"]),
            "files": tuple(BundleFile(**file) for file in data["files"]),
        }
    )
    if not manifest.precisions:
        raise ValueError("it names no graph")
    return manifest


def _check(bundle: Path, file: BundleFile) -> None:
    path = bundle / file.name
    if not path.is_file():
        raise GateError(f"{path}: missing from the bundle; export it again")
    if sha256_of(path) != file.sha256:
        raise GateError(f"{path}: its SHA-256 is not the manifest's: damaged or changed; export the bundle again")
