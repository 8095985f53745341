"""The models to measure: each that was given, and of a bundle every file that can run."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lipsformer.bundle.manifest import MANIFEST_NAME, OPENVINO, BundleFile, Manifest, read_manifest
from lipsformer.inference.runtimes import OnnxRuntime
from lipsformer.model.config import ModelConfig, config_from_dict
from lipsformer.system.errors import InputError

__all__ = ["Candidate", "Refusal", "find_candidates"]

NOT_FOR_ORT = "the graph that engines are built from; ONNX Runtime has another one"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """A model to measure.

    `path` is its file, `precision` None if that does not say. `max_batch` is the largest batch that passed the parity
    check, None for a checkpoint. `parity` is the report of that check, for a file of a bundle. An `optional` one was
    found in a bundle, and may be left out.
    """

    label: str
    path: Path
    precision: str | None
    config: ModelConfig
    max_batch: int | None = None
    parity: Mapping[str, Any] | None = None
    optional: bool = False

    @property
    def loads(self) -> tuple[Path, str | None]:
        """What `load_predictor` takes for it, model and precision: the bundle if the file alone would run in fp32."""
        return (self.path.parent, "bf16") if self.precision == "bf16" else (self.path, None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Refusal:
    """A file of a bundle that cannot be measured here, and why."""

    label: str
    reason: str


def find_candidates(models: Iterable[tuple[str, Path]]) -> list[Candidate | Refusal]:
    """The candidates of `models` in order, each a label with its path: checkpoint, .onnx file, engine or bundle.

    Raises:
        InputError: if one is none of these, or cannot be read.
        GateError: if the hash of a bundle's file differs from its manifest.
    """
    return [candidate for label, path in models for candidate in _candidates(label, path)]


def _candidates(label: str, path: Path) -> Iterator[Candidate | Refusal]:
    if path.is_dir():
        manifest = read_manifest(path)
        for file in manifest.files:
            if file.kind != "report":
                yield _member(f"{label.rstrip('/')}/{file.name}", path, manifest, file, optional=True)
    elif not path.exists():
        raise InputError(f"{label}: no such file or folder; give a checkpoint, an .onnx file, an engine or a bundle")
    elif path.suffix == ".engine" or (path.suffix == ".onnx" and path.with_name(MANIFEST_NAME).is_file()):
        manifest = read_manifest(path.parent)
        named = [file for file in manifest.files if file.name == path.name]
        if not named:
            raise InputError(f"{label}: the manifest next to it does not list it; move it out of the bundle's folder")
        yield _member(label, path.parent, manifest, named[0], optional=False)
    elif path.suffix == ".onnx":
        yield _graph(label, path)
    elif path.suffix == ".safetensors":
        from lipsformer.checkpoints.checkpoint import read_header

        yield Candidate(label=label, path=path, precision="fp32", config=read_header(path).config)
    else:
        raise InputError(f"{label}: not a model; give a checkpoint, an .onnx file, an engine or a bundle")


def _member(label: str, bundle: Path, manifest: Manifest, file: BundleFile, *, optional: bool) -> Candidate | Refusal:
    if optional and file.kind == "onnx" and file.target not in ("ort", OPENVINO):
        return Refusal(label=label, reason=NOT_FOR_ORT)
    return Candidate(
        label=f"{label} in bf16" if file.target == OPENVINO else label,
        path=bundle / file.name,
        precision=file.precision,
        config=config_from_dict(manifest.model),
        max_batch=manifest.max_batch,
        parity=file.parity,
        optional=optional,
    )


def _graph(label: str, path: Path) -> Candidate:
    metadata = OnnxRuntime(path, "cpu", threads=1).metadata()
    try:
        return Candidate(
            label=label,
            path=path,
            precision=metadata.get("precision"),
            config=config_from_dict(metadata["model"]),
            max_batch=int(metadata["max_batch"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: its metadata cannot be read ({error}); export it again") from None
