"""What is to be measured: every model that was named, and for a bundle everything in it that can run."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lipsformer.bundle.manifest import MANIFEST_NAME, BundleFile, Manifest, read_manifest
from lipsformer.bundle.pretrained import resolve_model
from lipsformer.inference.runtimes import OnnxRuntime
from lipsformer.model.config import ModelConfig, config_from_dict
from lipsformer.system.errors import InputError

__all__ = ["Candidate", "Refusal", "find_candidates"]

NOT_FOR_ORT = "the graph that engines are built from; ONNX Runtime has one of its own"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """A model to measure.

    `precision` is None where the file does not tell. `max_batch` is the largest batch that its export proved, None for
    a checkpoint; `proof` the report of the gate that it passed, where it is in a bundle; `optional` that it is measured
    for its bundle, and may be left out.
    """

    label: str
    path: Path
    precision: str | None
    config: ModelConfig
    max_batch: int | None = None
    proof: Mapping[str, Any] | None = None
    optional: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Refusal:
    """A part of a bundle that cannot be measured here, and why."""

    label: str
    reason: str


def find_candidates(models: Iterable[str | Path]) -> list[Candidate | Refusal]:
    """What `models` stand for, in their order: checkpoints, .onnx files, engines in their bundle, bundles.

    Raises:
        InputError: if one of them is none of these or cannot be read.
        GateError: if a bundle's file does not have the hash that its manifest promises.
    """
    return [candidate for model in models for candidate in _candidates(str(model))]


def _candidates(model: str) -> Iterator[Candidate | Refusal]:
    path = resolve_model(model)
    if path.is_dir():
        manifest = read_manifest(path)
        for file in manifest.files:
            if file.kind != "report":
                yield _member(f"{model.rstrip('/')}/{file.name}", path, manifest, file, optional=True)
    elif not path.exists():
        raise InputError(f"{model}: no such file or folder; give a checkpoint, an .onnx file, an engine or a bundle")
    elif path.suffix == ".engine" or (path.suffix == ".onnx" and path.with_name(MANIFEST_NAME).is_file()):
        manifest = read_manifest(path.parent)
        named = [file for file in manifest.files if file.name == path.name]
        if not named:
            raise InputError(f"{model}: the manifest beside it does not name it; move it out of the bundle's folder")
        yield _member(model, path.parent, manifest, named[0], optional=False)
    elif path.suffix == ".onnx":
        yield _graph(model, path)
    elif path.suffix == ".safetensors":
        from lipsformer.checkpoints.checkpoint import read_header

        yield Candidate(label=model, path=path, precision="fp32", config=read_header(path).config)
    else:
        raise InputError(f"{model}: not a model; give a checkpoint, an .onnx file, an engine or a bundle")


def _member(label: str, bundle: Path, manifest: Manifest, file: BundleFile, *, optional: bool) -> Candidate | Refusal:
    if optional and file.kind == "onnx" and file.target != "ort":
        return Refusal(label=label, reason=NOT_FOR_ORT)
    return Candidate(
        label=label,
        path=bundle / file.name,
        precision=file.precision,
        config=config_from_dict(manifest.model),
        max_batch=manifest.max_batch,
        proof=file.parity,
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
