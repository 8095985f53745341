"""Reading checkpoints of the official LipsFormer code, which are pickles, without running anything that they name."""

from __future__ import annotations

import dataclasses
import math
import pickle
import pickletools
import re
import struct
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from lipsformer.system.errors import InputError

__all__ = ["OfficialCheckpoint", "read_official"]

PARTS = ("model", "state_dict", "model_ema")  # where weights may lie, the first that is there; the official code: model
METRICS = ("max_accuracy", "epoch")
CONFIG_NODE = "yacs.config.CfgNode"
# What official checkpoints name in their pickle; torch's own list is longer.
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
    """What an official checkpoint holds.

    Attributes:
        part: the entry that the weights were taken from; None if the file is nothing but weights.
        weights: the state dict, buffers included, without the `module.` of a model that was trained on many devices.
        settings: the configuration that it was trained with, as it was pickled; empty if the file has none.
        metrics: those of `max_accuracy` (per cent) and `epoch` (from 0) that are there.
        left: the entries that were not looked at, such as the optimizer's state.
    """

    part: str | None
    weights: dict[str, Tensor]
    settings: dict[Any, Any]
    metrics: dict[str, int | float]
    left: tuple[str, ...]

    def stored_bytes(self) -> int:
        """The size of everything that the weights are views of."""
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in self.weights.values()}
        return sum(storage.nbytes() for storage in storages.values())

    def setting(self, path: str) -> Any:
        """A number, a text or a list of them from the configuration, by its dotted path such as "DATA.IMG_SIZE".

        None if it is not there, or something else.
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

    The pickle is looked through first, and refused if it names anything but tensors and plain containers. Then torch's
    restricted unpickler reads it, to which a node of the pickled yacs configuration is just an ordered dictionary.

    Raises:
        InputError: if the file is missing, cut off or no such checkpoint, or names something else in its pickle.
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
            f"{path}: its pickle names {foreign[0]}{more}, which no official checkpoint needs; nothing was run, "
            "nothing converted; if you trust its author, ask for the state dict alone"
        )
    if parsed is None or not parsed.weights:
        raise InputError(
            f"{path}: no weights in it; a state dict is needed, or a dictionary with one under {', '.join(PARTS)}"
        )
    return parsed


def _load(path: Path) -> Any:
    stand_in: list[Any] = [(OrderedDict, CONFIG_NODE)]
    with warnings.catch_warnings(), torch.serialization.safe_globals(stand_in):
        warnings.simplefilter("ignore")  # about storage classes and pickle protocols: nothing that a user could mend
        return torch.load(path, map_location="cpu", weights_only=True)


def _named_globals(path: Path) -> set[str]:
    """The dotted names of everything that the file's pickles would import.

    Raises:
        ValueError: if the file is a zip that unpacks to more than its own size. torch does not compress.
    """
    with path.open("rb") as file:
        zipped = file.read(len(ZIP_MAGIC)) == ZIP_MAGIC
        file.seek(0)
        if not zipped:
            return set(_globals_of_pickles(file, LEGACY_PICKLES))
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            compressed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
            if compressed or sum(member.file_size for member in members) > path.stat().st_size:
                raise ValueError("unpacks to more than its size")
    # By the reader that will load it: another one may find another record of that name in the same file.
    record = torch._C.PyTorchFileReader(str(path)).get_record("data.pkl")
    return set(_globals_of(pickletools.genops(record)))


def _globals_of_pickles(stream: IO[bytes], count: int) -> Iterator[str]:
    """What up to `count` pickles in a row name; what is no pickle ends the search."""
    binary = stream.read(1) == pickle.PROTO
    stream.seek(0)
    for _ in range(count):
        names: list[str] = []
        try:
            for name in _globals_of(pickletools.genops(stream)):
                names.append(name)  # noqa: PERF402 - those before an error count
        except ValueError:
            # A text may start like a pickle of protocol 0, where a "c" names a global.
            yield from names if binary else ()
            return
        yield from names


def _globals_of(operations: Iterable[tuple[pickletools.OpcodeInfo, Any, Any]]) -> Iterator[str]:
    # From protocol 4 on a name is made of the last two texts on the stack, which may come out of the memo.
    texts: list[str] = []
    memo: dict[int, Any] = {}
    latest: Any = None
    for operation, argument, _ in operations:
        name = operation.name
        if name in ("GLOBAL", "INST"):
            yield argument.replace(" ", ".")
        elif name == "STACK_GLOBAL":
            yield ".".join(texts[-2:])
        if name == "MEMOIZE":
            memo[len(memo)] = latest
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[argument] = latest
        else:
            latest = memo.get(argument) if name in ("GET", "BINGET", "LONG_BINGET") else argument
            texts += [latest] if isinstance(latest, str) else []


def _plain(node: dict[Any, Any]) -> dict[Any, Any]:
    """`node` as an exact dictionary. What stands in for a foreign class may have been given attributes by the file, and
    one named `get` would be called instead of the method.
    """
    return dict(list(dict.items(node)))


def _parse(content: dict[Any, Any]) -> OfficialCheckpoint | None:
    """The parts of what was unpickled; None if there are no weights among them."""
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
