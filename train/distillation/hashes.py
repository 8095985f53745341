"""Hashes that identify a teacher: the same training needs the same one."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lipsformer.bundle.manifest import MANIFEST_NAME
from lipsformer.system.atomic import sha256_of
from lipsformer.system.errors import InputError
from lipsformer.system.extras import require

if TYPE_CHECKING:
    import onnx

__all__ = ["hash_model", "hash_weights", "read_graph"]


def hash_model(path: Path) -> str:
    """SHA-256 of a model's file, or of a bundle's manifest, which has the hashes of its files.

    An ONNX file with weights in other files has the hash of all their hashes.

    Raises:
        InputError: if a file cannot be read.
    """
    if path.is_dir():
        return sha256_of(path / MANIFEST_NAME)
    others = _external_files(path) if path.suffix == ".onnx" else []
    hashes = [sha256_of(file) for file in (path, *others)]
    return hashlib.sha256("".join(hashes).encode()).hexdigest() if others else hashes[0]


def hash_weights(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of the names and values of tensors."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_graph(path: Path) -> onnx.ModelProto:
    """An ONNX file without the weights that lie in other files.

    Raises:
        InputError: if it is not an ONNX file, or the package onnx is missing.
    """
    require("export", "onnx", what=str(path))
    import onnx

    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # noqa: BLE001 - protobuf's errors differ between its versions
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{path}: not a readable ONNX file ({reason}); is the file whole?") from None
    if not model.graph.node:  # an empty file is a valid message of protobuf
        raise InputError(f"{path}: not a readable ONNX file (it has no graph); is the file whole?")
    return model


def _external_files(path: Path) -> list[Path]:
    graph = read_graph(path).graph
    from onnx.external_data_helper import ExternalDataInfo, uses_external_data

    tensors = [tensor for tensor in graph.initializer if uses_external_data(tensor)]
    return [path.parent / name for name in sorted({ExternalDataInfo(tensor).location for tensor in tensors})]
