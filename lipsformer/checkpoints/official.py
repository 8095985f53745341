"""Checkpoints of the official LipsFormer code: pickles, read without running anything that they name."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
import pickle
import re
import struct
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._weights_only_unpickler import get_globals_in_pkl

from lipsformer.system.errors import InputError

__all__ = ["OfficialCheckpoint", "read_official"]

PARTS = (
    "model",
    "state_dict",
    "model_ema",
)  # entries that may hold the weights, the first that exists; the official code writes "model"
METRICS = ("max_accuracy", "epoch")
CONFIG_NODE = "yacs.config.CfgNode"
# What official checkpoints name in their pickles. The list of torch's own restricted unpickler is longer.
HARMLESS = re.compile(
    r"collections\.(OrderedDict|Counter)|(__builtin__|builtins)\.set|torch\.(Size|device)"
    r"|torch\._utils\._rebuild_(tensor_v2|parameter)"
    r"|torch\.(Float|Double|Half|BFloat16|Long|Int|Short|Char|Byte|Bool)Storage|" + re.escape(CONFIG_NODE)
)
ZIP_MAGIC = b"PK\x03\x04"
LEGACY_PICKLES = 5  # before 1.6, torch wrote a magic number, a version, the system, the objects and the storages' keys
DAMAGE = (  # what torch and the pickle machinery raise for files that are cut off, damaged or something else
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    struct.error,
    EOFError,
    RuntimeError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    MemoryError,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OfficialCheckpoint:
    """The contents of an official checkpoint.

    Attributes:
        part: the entry that the weights were taken from; None if the file is nothing but weights.
        weights: the state dict, buffers included, without the `module.` of a model that was trained on many devices.
        settings: the training configuration as pickled; empty if the file has none.
        metrics: `max_accuracy` (percent) and `epoch` (from 0), where present.
        left: the entries that were ignored, such as the optimizer's state.
    """

    part: str | None
    weights: dict[str, Tensor]
    settings: dict[Any, Any]
    metrics: dict[str, int | float]
    left: tuple[str, ...]

    def stored_bytes(self) -> int:
        """Total size of the storages that the weights are views of."""
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in self.weights.values()}
        return sum(storage.nbytes() for storage in storages.values())

    def setting(self, path: str) -> Any:
        """A number, a string or a list of them from the configuration, by its dotted path such as "DATA.IMG_SIZE".

        None if it is missing or anything else.
        """
        node: Any = self.settings
        for name in path.split("."):
            node = _plain(node).get(name) if isinstance(node, dict) else None
        entries = list(node) if isinstance(node, list | tuple) else [node]
        if not all(isinstance(entry, str | int | float) for entry in entries):
            return None
        return entries if isinstance(node, list | tuple) else node


def read_official(path: Path) -> OfficialCheckpoint:
    """Reads a checkpoint that the official code wrote, or a bare state dict of its model.

    First the pickle is scanned, without executing it, and refused if it names anything but tensors and plain
    containers. Then torch's restricted unpickler (`weights_only=True`) reads it, with an ordered dictionary standing in
    for the nodes of a pickled yacs configuration.

    Raises:
        InputError: if the file is missing, cut off, not such a checkpoint, or names anything else in its pickle.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; give a checkpoint (.pth) of the official LipsFormer code")
    try:
        foreign = sorted(name for name in _named_globals(path) if not HARMLESS.fullmatch(name))
        content = None if foreign else _load(path)
        parsed = _parse(_plain(content)) if isinstance(content, dict) else None
        if parsed is not None and parsed.stored_bytes() > path.stat().st_size:
            raise ValueError("fewer numbers in the file than its tensors have")  # torch leaves the rest uninitialized
    except DAMAGE:
        raise InputError(f"{path}: not a checkpoint that torch.save wrote, or damaged; is the file whole?") from None
    if foreign:
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise InputError(
            f"{path}: its pickle names {foreign[0]}{more}, which no official checkpoint needs; nothing was run or "
            "converted; if you trust its author, ask for the state dict alone"
        )
    if parsed is None or not parsed.weights:
        raise InputError(
            f"{path}: no weights in it; a state dict is needed, or a dictionary with one under {', '.join(PARTS)}"
        )
    return parsed


def _load(path: Path) -> Any:
    stand_in: list[Any] = [(OrderedDict, CONFIG_NODE)]
    with warnings.catch_warnings(), torch.serialization.safe_globals(stand_in):
        warnings.simplefilter("ignore")  # about storage classes and pickle protocols: nothing that a user could fix
        return torch.load(path, map_location="cpu", weights_only=True)


def _named_globals(path: Path) -> set[str]:
    """The dotted names of everything that the file's pickles would import, as far as torch can read them.

    Raises:
        ValueError: if the file is a zip that unpacks to more than its own size. torch does not compress.
    """
    names: set[str] = set()
    with path.open("rb") as file:
        if file.read(len(ZIP_MAGIC)) != ZIP_MAGIC:
            file.seek(0)
            with contextlib.suppress(*DAMAGE):  # no pickle, or no further one; torch.load will say
                for _ in range(LEGACY_PICKLES):
                    names |= get_globals_in_pkl(file)
            return names
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            compressed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
            if compressed or sum(member.file_size for member in members) > path.stat().st_size:
                raise ValueError("unpacks to more than its size")
    # By the reader that will load it: another one may find another record of that name in the same file.
    record = torch._C.PyTorchFileReader(str(path)).get_record("data.pkl")
    return get_globals_in_pkl(io.BytesIO(record))


def _plain(node: dict[Any, Any]) -> dict[Any, Any]:
    """`node` as an exact dictionary.

    The file may give attributes to what stands in for a foreign class; one named `get` would be called as the method.
    """
    return dict(list(dict.items(node)))


def _parse(content: dict[Any, Any]) -> OfficialCheckpoint | None:
    """The parts of the unpickled content; None if it has no weights."""
    if content and all(isinstance(value, Tensor) for value in content.values()):
        return OfficialCheckpoint(part=None, weights=_named(content), settings={}, metrics={}, left=())
    part = next((name for name in PARTS if isinstance(content.get(name), dict)), None)
    if part is None:
        return None
    settings = content.get("config")
    metrics = {name: content[name] for name in METRICS if _is_number(content.get(name))}
    taken = {part, *metrics, *(["config"] if isinstance(settings, dict) else [])}
    return OfficialCheckpoint(
        part=part,
        weights=_named(_plain(content[part])),
        settings=settings if isinstance(settings, dict) else {},
        metrics=metrics,
        left=tuple(str(name) for name in content if name not in taken),
    )


def _named(weights: dict[Any, Any]) -> dict[str, Tensor]:
    if not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in weights.items()):
        raise TypeError("not a state dict")
    prefix = "module." if all(name.startswith("module.") for name in weights) else ""
    return {name.removeprefix(prefix): tensor.detach() for name, tensor in weights.items()}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
