"""Many names in little memory: a million Path objects weigh hundreds of MB and take seconds to pickle."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

__all__ = ["Names"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Names:
    """N file names as the system has them: name i is `blob[ends[i]:ends[i + 1]]`; `ends` (N + 1,) is int64."""

    blob: bytes
    ends: NDArray[np.int64]

    @classmethod
    def of(cls, names: Iterable[bytes]) -> Self:
        """The given names."""
        kept = list(names)
        ends = np.zeros(len(kept) + 1, np.int64)
        np.cumsum(np.fromiter(map(len, kept), np.int64, len(kept)), out=ends[1:])
        return cls(blob=b"".join(kept), ends=ends)

    @classmethod
    def joined(cls, parts: Iterable[Names]) -> Self:
        """The names of all `parts`, one after the other."""
        kept = list(parts)
        lengths = np.concatenate([np.zeros(1, np.int64), *(np.diff(part.ends) for part in kept)])
        return cls(blob=b"".join(part.blob for part in kept), ends=np.cumsum(lengths))

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, index: int) -> bytes:
        return self.blob[self.ends[index] : self.ends[index + 1]]

    def to_arrays(self, name: str) -> dict[str, NDArray[Any]]:
        """Arrays to keep these names in a file, under keys that start with `name`."""
        return {f"{name}_blob": np.frombuffer(self.blob, np.uint8), f"{name}_ends": self.ends}

    @classmethod
    def from_arrays(cls, name: str, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """What `to_arrays` gave.

        Raises:
            KeyError: if an array is missing.
            ValueError: if they do not fit together.
        """
        blob, ends = arrays[f"{name}_blob"], arrays[f"{name}_ends"]
        fits = blob.dtype == np.uint8 and blob.ndim == 1 and ends.dtype == np.int64 and ends.ndim == 1 and len(ends)
        if not fits or ends[0] != 0 or ends[-1] != len(blob) or (np.diff(ends) < 0).any():
            raise ValueError(name)
        return cls(blob=blob.tobytes(), ends=ends)

    def text(self, index: int) -> str:
        """Name `index` as Python writes file names."""
        return os.fsdecode(self[index])
