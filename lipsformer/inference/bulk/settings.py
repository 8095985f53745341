"""What a bulk prediction was asked for, and what decides its rows."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from pathlib import Path
from typing import Any, Self

from lipsformer.inference.predictor import Predictor
from lipsformer.system.atomic import sha256_of
from lipsformer.system.errors import InputError

__all__ = ["BulkOptions", "Part", "identity"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """One of `total` equal shares of the images, with the `number` 1 to `total`: every `total`-th block.

    Raises:
        InputError: if `number` is out of range.
    """

    number: int = 1
    total: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.total:
            raise InputError(f"--part {self}: the part must be between 1 and {self.total}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads "3/16".

        Raises:
            InputError: if it is something else.
        """
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text, re.ASCII)
        if found is None:
            raise InputError(f"--part {text}: write it as K/N, as in 3/16")
        return cls(number=int(found[1]), total=int(found[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.total}"

    def has(self, block: int) -> bool:
        """Whether the block with this number, from 0 on, is in this part."""
        return block % self.total == self.number - 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class BulkOptions:
    """Options of a bulk prediction.

    Args:
        model: the model as the user named it.
        sources: see `list_images`.
        column: see `list_images`.
        top_k: classes in each row.
        features: whether rows have the pooled features.
        part: which part of the images.
        max_failures: how many images may be refused; None for any number.
        copy_to: a folder to sort the images into.
        state: the folder of the state; None for that of OUT, or the current one if OUT is in an object store.

    Raises:
        InputError: if a value is out of range.
    """

    model: str
    sources: tuple[str, ...]
    column: str | None = None
    top_k: int = 5
    features: bool = False
    part: Part = dataclasses.field(default_factory=Part)
    max_failures: int | None = None
    copy_to: Path | None = None
    state: Path | None = None

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise InputError(f"--top-k {self.top_k}: at least 1 is needed")
        if self.max_failures is not None and self.max_failures < 0:
            raise InputError(f"--max-failures {self.max_failures}: give 0 or more")


def identity(predictor: Predictor, options: BulkOptions) -> dict[str, Any]:
    """Everything that decides the rows, as plain data. Rows of two predictions belong together if these are equal.

    The images of a block of `block` are one batch. The name of the model is not in it: a model may have several.
    """
    rule = predictor.acceptance
    facts = {
        "model_sha256": sha256_of(predictor.file),
        "provider": predictor.runtime.provider,
        "precision": predictor.precision,
        "preprocessing": predictor.preprocessing.to_dict(),
        "classes_sha256": hashlib.sha256(json.dumps(predictor.classes).encode()).hexdigest(),
        "temperature": predictor.temperature,
        "acceptance": None if rule is None else rule.thresholds.to_dict(),
        "block": predictor.max_batch,
        "top_k": options.top_k,
        "features": options.features,
        "column": options.column,
        "sources": options.sources,
    }
    plain: dict[str, Any] = json.loads(json.dumps(facts))  # as it is read back
    return plain
