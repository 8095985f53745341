"""Many names in little memory: a million Path objects weigh hundreds of MB and take seconds to pickle."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable
from typing import Self

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

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, index: int) -> bytes:
        return self.blob[self.ends[index] : self.ends[index + 1]]

    def text(self, index: int) -> str:
        """Name `index` as Python writes file names."""
        return os.fsdecode(self[index])
