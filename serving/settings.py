"""What a server may be told, and how: environment variables, because worker processes inherit nothing else."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self, TypeVar

import lipsformer
from lipsformer.images.open import ImageLimits
from lipsformer.system.errors import InputError
from lipsformer.system.hardware import check_device, cores, visible_gpus

__all__ = ["Settings", "worker_count"]

PACKED_BUNDLE = Path(lipsformer.__file__).parents[1] / "bundle"
CORES_OF_A_WORKER = 4  # one event loop keeps about so many cores busy with decoding and inference
MIB = 1024 * 1024

Default = TypeVar("Default", int, None)
LogFormat = Literal["text", "json"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """One worker's settings; each is the environment variable LIPSFORMER_<NAME>, in capitals.

    Args:
        bundle: folder that `lipsformer export` wrote, or `bentoml:NAME:VERSION` of BentoML's model store; by default
            the one that a Bento carries.
        device: "auto", "cpu" or "cuda".
        precision: which of the bundle's precisions to run; None means its first.
        workers: worker processes of the server; by default one for each GPU, or for every four cores.
        threads: CPU threads of one worker's inference, and its decoder processes; by default an equal share of the
            cores.
        limits: largest image, in bytes (MAX_BYTES) and in pixels (MAX_PIXELS).
        max_images: images in one request to /classify_batch.
        max_batch: largest batch; None means the largest that the export proved.
        max_pending: images that one worker may have accepted and not yet answered.
        deadline: seconds from a request's head to its answer.
        read_timeout: seconds for a body to arrive.
        decode_timeout: seconds for an image to be decoded.
        decode_memory: bytes that one decoder process may use (DECODE_MEMORY, in MiB).
        api_keys_file: a file of keys, one a line; None lets everybody in.
        cors_origins: origins whose pages may ask; none by default.
        log: "text" or "json" lines on stderr.
        access_log: whether each request gets a line.
        monitoring: folder for the predictions that were given; None keeps none.
        watch: seconds between looks at the bundle for a newer one; None looks on SIGHUP alone.
    """

    bundle: Path
    device: str
    precision: str | None
    workers: int
    threads: int
    limits: ImageLimits
    max_images: int
    max_batch: int | None
    max_pending: int
    deadline: int
    read_timeout: int
    decode_timeout: int
    decode_memory: int
    api_keys_file: Path | None
    cors_origins: tuple[str, ...]
    log: LogFormat
    access_log: bool
    monitoring: Path | None
    watch: int | None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """The settings that environment variables give.

        Raises:
            InputError: if a value cannot be used; the message names the variable.
        """
        device = environment.get("LIPSFORMER_DEVICE") or "auto"
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
            max_images=_count(environment, "LIPSFORMER_MAX_IMAGES", 64),
            max_batch=_count(environment, "LIPSFORMER_MAX_BATCH", None),
            max_pending=_count(environment, "LIPSFORMER_MAX_PENDING", 64),
            deadline=_count(environment, "LIPSFORMER_DEADLINE", 30),
            read_timeout=_count(environment, "LIPSFORMER_READ_TIMEOUT", 10),
            decode_timeout=_count(environment, "LIPSFORMER_DECODE_TIMEOUT", 5),
            decode_memory=_count(environment, "LIPSFORMER_DECODE_MEMORY", 1024) * MIB,
            api_keys_file=_path(environment, "LIPSFORMER_API_KEYS_FILE"),
            cors_origins=_origins(environment),
            log="json" if _choice(environment, "LIPSFORMER_LOG", ("text", "json")) == "json" else "text",
            access_log=_choice(environment, "LIPSFORMER_ACCESS_LOG", ("on", "off")) == "on",
            monitoring=_path(environment, "LIPSFORMER_MONITORING"),
            watch=_count(environment, "LIPSFORMER_WATCH", None),
        )

    @property
    def max_body(self) -> int:
        """Bytes of the largest body of /classify: a form adds boundaries, part headers and top_k to its image."""
        return self.limits.max_bytes + 16 * 1024

    @property
    def max_batch_body(self) -> int:
        """Bytes of the largest body of /classify_batch: that of a few of the largest images, or of many usual ones."""
        return 4 * self.limits.max_bytes


def worker_count(environment: Mapping[str, str]) -> int:
    """The number of worker processes, needed before anything else is.

    Raises:
        InputError: if LIPSFORMER_WORKERS is not a whole number from 1 on.
    """
    gpus = 0 if environment.get("LIPSFORMER_DEVICE") == "cpu" else len(visible_gpus(environment))
    return _count(environment, "LIPSFORMER_WORKERS", gpus or math.ceil(cores() / CORES_OF_A_WORKER))


def _count(environment: Mapping[str, str], name: str, default: Default) -> int | Default:
    text = environment.get(name)
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 16 and int(text) > 0):
        raise InputError(f"{name}={text}: a whole number from 1 on is needed")
    return int(text)


def _choice(environment: Mapping[str, str], name: str, choices: tuple[str, ...]) -> str:
    text = environment.get(name) or choices[0]
    if text not in choices:
        raise InputError(f"{name}={text}: one of {', '.join(choices)} is needed")
    return text


def _path(environment: Mapping[str, str], name: str) -> Path | None:
    return Path(os.path.abspath(environment[name])) if environment.get(name) else None  # noqa: PTH100 - keep symlinks


def _origins(environment: Mapping[str, str]) -> tuple[str, ...]:
    name = "LIPSFORMER_CORS_ORIGINS"
    origins = tuple(part.strip() for part in environment.get(name, "").split(",") if part.strip())
    for origin in origins:
        if origin != "*" and (not origin.startswith(("https://", "http://")) or origin.count("/") != 2):
            raise InputError(f"{name}={origin}: an origin such as https://example.org is needed, or * for all")
    return origins
