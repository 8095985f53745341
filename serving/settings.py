"""What a server may be told, and how: environment variables, because worker processes inherit nothing else."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Self, TypeVar

from lipsformer.errors import InputError
from lipsformer.images import ImageLimits
from lipsformer.machine import check_device, cores

__all__ = ["Settings", "worker_count"]

PACKED_BUNDLE = Path(__file__).parents[1] / "bundle"

Default = TypeVar("Default", int, None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """One worker's settings.

    Args:
        bundle: folder that `lipsformer export` wrote, or `bentoml:NAME:VERSION` of BentoML's model store
            (LIPSFORMER_BUNDLE); by default the one that a Bento carries.
        device: "auto", "cpu" or "cuda" (LIPSFORMER_DEVICE).
        precision: which of the bundle's precisions to run (LIPSFORMER_PRECISION); None means its first.
        workers: worker processes of the server (LIPSFORMER_WORKERS).
        threads: CPU threads of one worker, for decoding and for inference (LIPSFORMER_THREADS); by default an equal
            share of the cores.
        limits: largest image, in bytes and in pixels (LIPSFORMER_MAX_BYTES, LIPSFORMER_MAX_PIXELS).
        max_batch: largest batch (LIPSFORMER_MAX_BATCH); None means the largest that the export proved.
        max_pending: images that one worker may have accepted and not yet answered (LIPSFORMER_MAX_PENDING).
        deadline: seconds from a request's head to its answer (LIPSFORMER_DEADLINE).
    """

    bundle: Path
    device: str
    precision: str | None
    workers: int
    threads: int
    limits: ImageLimits
    max_batch: int | None
    max_pending: int
    deadline: int

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """The settings that environment variables give.

        Raises:
            InputError: if a value cannot be used; the message names the variable.
        """
        device = environment.get("LIPSFORMER_DEVICE", "auto")
        check_device(device)
        workers = worker_count(environment)
        limits = ImageLimits()
        return cls(
            bundle=Path(environment.get("LIPSFORMER_BUNDLE") or PACKED_BUNDLE),
            device=device,
            precision=environment.get("LIPSFORMER_PRECISION") or None,
            workers=workers,
            threads=_count(environment, "LIPSFORMER_THREADS", max(1, cores() // workers)),
            limits=ImageLimits(
                max_bytes=_count(environment, "LIPSFORMER_MAX_BYTES", limits.max_bytes),
                max_pixels=_count(environment, "LIPSFORMER_MAX_PIXELS", limits.max_pixels),
            ),
            max_batch=_count(environment, "LIPSFORMER_MAX_BATCH", None),
            max_pending=_count(environment, "LIPSFORMER_MAX_PENDING", 64),
            deadline=_count(environment, "LIPSFORMER_DEADLINE", 30),
        )


def worker_count(environment: Mapping[str, str]) -> int:
    """The number of worker processes, needed before anything else is: LIPSFORMER_WORKERS, by default 1.

    Raises:
        InputError: if it is not a whole number from 1 on.
    """
    return _count(environment, "LIPSFORMER_WORKERS", 1)


def _count(environment: Mapping[str, str], name: str, default: Default) -> int | Default:
    text = environment.get(name)
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 16 and int(text) > 0):
        raise InputError(f"{name}={text}: a whole number from 1 on is needed")
    return int(text)
