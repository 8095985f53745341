"""The manifest of a bundle: written by `lipsformer export`, and verified by every consumer before it trusts a file."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import ConfigDict, Field, InstanceOf
from pydantic.dataclasses import dataclass

from lipsformer.images.preprocessing import Preprocessing
from lipsformer.system.atomic import sha256_of
from lipsformer.system.errors import GateError, InputError
from lipsformer.system.validation import one_line_errors

from .acceptance import LEAST_TEMPERATURE, MOST_TEMPERATURE, AcceptanceRule
from .certificate import Certificate, Int8Bound
from .class_names import parse_class_names
from .reference import ReferenceHistograms

__all__ = ["MANIFEST_NAME", "OPENVINO", "PRECISIONS", "TARGETS", "BundleFile", "Kind", "Manifest", "read_manifest"]

MANIFEST_NAME = "manifest.json"
FORMAT = 5
READABLE = (2, 3, 4, FORMAT)  # 2 has no temperature and no acceptance, 3 no speedup, 4 no reference and no certificate
SEAL = "sha256"  # of the manifest itself

Kind = Literal["onnx", "whole-image", "engine", "heat-maps", "report", "acceptance"]
Precision = Literal["fp32", "fp16", "bf16", "int8"]
# What runs a file. Float graphs are for ONNX Runtime, and TensorRT builds from them too; int8 has a graph for each.
# bf16 has none: it is the fp32 graph, listed a second time, computed in bfloat16 by OpenVINO.
Target = Literal["ort", "openvino", "tensorrt", "tensorrt-rtx"]
OPENVINO: Target = "openvino"
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
TARGETS: tuple[Target, ...] = get_args(Target)

STRICT = ConfigDict(strict=True, extra="forbid")


@one_line_errors
@dataclass(frozen=True, kw_only=True, config=STRICT)
class BundleFile:
    """One file of a bundle.

    `kind` is "onnx" for graphs, "whole-image" for one that takes images of any size, "engine" for what TensorRT built
    from one, "heat-maps" for the graph that explains answers, "report" for their documentation, and "acceptance" for
    the rule by which answers are accepted. Graphs and engines have the `target` that runs them, a `precision`, and the
    report of the parity gate that they passed (`parity`). An engine also records what it was `built` with: versions,
    GPU, batches, and the SHA-256 of its graph.
    bf16 records its `speedup` over fp32 in ONNX Runtime where it was exported: the `cpu`, its `instructions` for bf16,
    the `threads`, and `ratios` by batch size. An int8 graph of a model with a certificate has a `bound` of what int8
    may change.

    Raises:
        InputError: if a field is invalid, or missing for its `kind`.
    """

    name: str
    kind: Kind
    sha256: str
    size: Annotated[int, Field(ge=0)]
    target: Target | None = None
    precision: Precision | None = None
    parity: dict[str, Any] | None = None
    built: dict[str, Any] | None = None
    speedup: dict[str, Any] | None = None
    bound: InstanceOf[Int8Bound] | None = None

    def __post_init__(self) -> None:
        if Path(self.name).name != self.name:
            raise ValueError(f"{self.name!r} is not the name of a file in the bundle")
        if self.kind in ("heat-maps", "report", "acceptance"):
            return
        if self.target is None or self.precision is None or self.parity is None:
            raise ValueError(f"{self.name}: a graph or an engine needs target, precision and parity")
        if (self.kind == "engine") != (self.built is not None):
            raise ValueError(f"{self.name}: engines, and only they, record what they were built with")
        if len({self.target == OPENVINO, self.precision == "bf16", self.speedup is not None}) > 1:
            raise ValueError(f"{self.name}: bf16, and nothing else, is for OpenVINO and has a speedup")
        if self.bound is not None and self.precision != "int8":
            raise ValueError(f"{self.name}: only int8 has a bound")

    @classmethod
    def describe(cls, path: Path, kind: Kind, **facts: Any) -> Self:
        """Measures a file in the bundle; `facts` are the other fields, which graphs and engines have."""
        return cls(name=path.name, kind=kind, sha256=sha256_of(path), size=path.stat().st_size, **facts)


@one_line_errors
@dataclass(frozen=True, kw_only=True, config=STRICT)
class Manifest:
    """Everything about a bundle: classes, preprocessing, and its files with hashes and parity reports.

    `max_batch` is the largest batch that parity was verified for. The graphs' logits are already divided by
    `temperature`. `reference` has the answers to the photos of its calibration, if it has been calibrated, and
    `certificate` is the checkpoint's, if any. Graphs are in the order of the requested precisions: the first one is the
    default, see `open_best`.

    Raises:
        InputError: if a field is invalid.
    """

    model: dict[str, Any]
    classes: tuple[str, ...]
    preprocessing: InstanceOf[Preprocessing]
    max_batch: Annotated[int, Field(ge=1)]
    files: tuple[InstanceOf[BundleFile], ...]
    checkpoint_sha256: str
    metrics: dict[str, Any]
    versions: dict[str, str]
    created: str
    temperature: Annotated[float, Field(ge=LEAST_TEMPERATURE, le=MOST_TEMPERATURE)] = 1.0
    reference: InstanceOf[ReferenceHistograms] | None = None
    certificate: InstanceOf[Certificate] | None = None

    def write(self, folder: Path) -> None:
        """Writes `manifest.json` into `folder`, including a hash of its content."""
        data = {"format": FORMAT, **dataclasses.asdict(self)}
        (folder / MANIFEST_NAME).write_text(_sealed(data), encoding="utf-8")

    @property
    def precisions(self) -> tuple[str, ...]:
        """The precisions that run without an engine, the default first."""
        return tuple(file.precision or "" for file in self.files if _is_graph(file))

    def graph(self, precision: str | None = None) -> BundleFile:
        """The graph for ONNX Runtime, or for bf16 OpenVINO: the first, or the one of `precision`.

        Raises:
            InputError: if there is no graph of that precision.
        """
        for file in self.files:
            if _is_graph(file) and precision in (None, file.precision):
                return file
        raise InputError(
            f"--precision {precision}: the bundle has {', '.join(self.precisions)}; "
            f"choose one of them, or export again with --precision {precision}"
        )

    def certificate_of(self, file: BundleFile) -> Certificate | None:
        """The certificate of answers by `file`: what it adds is subtracted from leads.

        That is what the parity gate measured, or for int8 its bound, if there is one. None if the checkpoint has none,
        or the gate has not run the file.
        """
        rows = (file.parity or {}).get("batches")
        if self.certificate is None or not rows:
            return None
        try:
            if file.bound is not None:
                return self.certificate.of_int8(file.bound)
            return self.certificate.loosened(max(max(row["max_abs"], row["hard_max_abs"]) for row in rows))
        except (KeyError, TypeError, InputError):
            return None

    def read_acceptance(self, bundle: Path) -> AcceptanceRule | None:
        """The rule by which answers are accepted; None if the bundle has none.

        Raises:
            InputError: if it cannot be read.
            GateError: if its bytes are not those that were exported.
        """
        for file in self.files:
            if file.kind == "acceptance":
                content = (bundle / file.name).read_bytes()  # the bytes whose hash is checked
                if hashlib.sha256(content).hexdigest() != file.sha256:
                    raise _changed(bundle / file.name)
                return AcceptanceRule.from_bytes(content)
        return None

    def heat_map_graph(self, bundle: Path) -> Path | None:
        """The graph that explains answers; None if the bundle was exported without it."""
        return next((bundle / file.name for file in self.files if file.kind == "heat-maps"), None)

    @property
    def bf16(self) -> BundleFile | None:
        """The fp32 graph as OpenVINO runs it; None if the bundle was exported without bf16."""
        return next((file for file in self.files if file.target == OPENVINO), None)

    def engines(self, precision: str) -> tuple[BundleFile, ...]:
        """The engines of a precision; each runs only where its `built` matches."""
        return tuple(file for file in self.files if file.kind == "engine" and file.precision == precision)


def read_manifest(bundle: Path) -> Manifest:
    """Reads a bundle's manifest and verifies the hash of every file that it names.

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
        intact = found not in READABLE or text == _sealed(data)
        manifest = _parse(data) if found in READABLE and intact else None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, OSError) as error:
        reason = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
        raise InputError(f"{path}: damaged manifest ({reason}); export the bundle again") from None
    if not intact:
        raise GateError(f"{path}: its SHA-256 is not the one it was written with: damaged or changed; export it again")
    if manifest is None:
        raise InputError(f"{path}: bundle format {found}, this version reads {FORMAT}; export the bundle again")
    for name, sha256 in dict.fromkeys((file.name, file.sha256) for file in manifest.files):
        _check(bundle / name, sha256)
    return manifest


def _sealed(data: Mapping[str, Any]) -> str:
    """The text of a manifest, which includes the hash of all the rest: a single changed byte is detected."""
    content = {name: value for name, value in data.items() if name != SEAL}
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return json.dumps({**content, SEAL: digest}, indent=2) + "\n"


def _is_graph(file: BundleFile) -> bool:
    return file.kind == "onnx" and file.target in ("ort", OPENVINO)


def _parse(data: dict[str, Any]) -> Manifest:
    manifest = Manifest(
        **{
            **{name: value for name, value in data.items() if name not in ("format", SEAL)},
            "classes": parse_class_names(data["classes"]),
            "preprocessing": Preprocessing.from_dict(data["preprocessing"]),
            "files": tuple(_parse_file(file) for file in data["files"]),
            "reference": ReferenceHistograms.from_dict(data.get("reference")),
            "certificate": Certificate.from_dict(data["certificate"]) if data.get("certificate") else None,
        }
    )
    if not manifest.precisions:
        raise ValueError("it names no graph")
    return manifest


def _parse_file(data: dict[str, Any]) -> BundleFile:
    return BundleFile(**{**data, "bound": Int8Bound(**data["bound"]) if data.get("bound") else None})


def _check(path: Path, sha256: str) -> None:
    if not path.is_file():
        raise GateError(f"{path}: missing from the bundle; export the bundle again")
    if sha256_of(path) != sha256:
        raise _changed(path)


def _changed(path: Path) -> GateError:
    return GateError(f"{path}: its SHA-256 is not the manifest's: damaged or changed; export the bundle again")
