"""Server settings, read from environment variables, because worker processes inherit nothing else."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

import lipsformer
from lipsformer.images.open import ImageLimits
from lipsformer.system.errors import InputError
from lipsformer.system.hardware import check_device, cores, visible_gpus
from lipsformer.system.validation import input_error

__all__ = ["LogFormat", "Settings", "worker_count"]

PACKED_BUNDLE = Path(lipsformer.__file__).parents[1] / "bundle"
CORES_PER_WORKER = 4  # one event loop keeps about as many cores busy with decoding and inference


def _checked_device(device: str) -> str:
    check_device(device)
    return device


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100 - keep symlinks


def _origins(text: str) -> tuple[str, ...]:
    origins = tuple(part.strip() for part in text.split(",") if part.strip())
    for origin in origins:
        if origin != "*" and (not origin.startswith(("https://", "http://")) or origin.count("/") != 2):
            raise InputError(
                f"LIPSFORMER_CORS_ORIGINS={origin}: an origin such as https://example.org is needed, or * for all"
            )
    return origins


Count = Annotated[int, Field(ge=1, lt=10**15)]
LogFormat = Literal["text", "json"]
Device = Annotated[str, AfterValidator(_checked_device)]
AbsolutePath = Annotated[Path, AfterValidator(_absolute)]


class _WorkerCount(BaseModel):
    """The setting that BentoML needs first; reads the variables LIPSFORMER_<NAME>. An empty one counts as unset."""

    workers: Count

    model_config = ConfigDict(frozen=True, alias_generator=lambda name: f"LIPSFORMER_{name.upper()}")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """The settings in environment variables.

        Raises:
            InputError: if a value cannot be used; the message names the variable.
        """
        default = str(_default_workers(environment))
        given = {name: value for name, value in environment.items() if value}
        try:
            return cls.model_validate({"LIPSFORMER_WORKERS": default, **given})
        except ValidationError as error:
            raise input_error(error, "") from None


class Settings(_WorkerCount):
    """The settings of one worker; each is the environment variable LIPSFORMER_<NAME>, in capitals.

    Args:
        workers: worker processes of the server; by default one per GPU, or one for every four cores.
        bundle: folder that `lipsformer export` wrote, or `bentoml:NAME:VERSION` in BentoML's model store; by default
            the one in the Bento.
        device: "auto", "cpu" or "cuda".
        precision: which of the bundle's precisions to run; None means its first.
        threads: CPU threads of one worker's inference, and number of its decoder processes; by default an equal share
            of the cores.
        max_bytes: size of the largest image.
        max_pixels: of the largest image.
        max_images: images in one request to /classify_batch.
        max_batch: largest batch; None means the largest that the export verified.
        max_pending: images that one worker may have accepted and not yet answered.
        deadline: seconds from the headers of a request to its response.
        read_timeout: seconds for a body to arrive.
        decode_timeout: seconds for an image to be decoded.
        decode_memory: MiB that one decoder process may use.
        model_name: name of the model in the Open Inference Protocol.
        api_keys_file: a file of keys, one per line; None admits everybody.
        cors_origins: origins whose pages may send requests; none by default.
        log: "text" or "json" lines on stderr.
        access_log: "on" or "off": whether each request gets a line.
        monitoring: folder for the predictions; None keeps none.
        drift_window: answers that a worker compares with the bundle's reference histograms.
        shadow: a second bundle that answers a share of the images too, only to be compared with.
        shadow_share: that share.
        watch: seconds between checks for a newer bundle; None checks on SIGHUP only.
    """

    bundle: Path = PACKED_BUNDLE
    device: Device = "auto"
    precision: str | None = None
    threads: Count = Field(default_factory=lambda given: max(1, cores() // int(given["workers"])))
    max_bytes: Count = ImageLimits().max_bytes
    max_pixels: Count = ImageLimits().max_pixels
    max_images: Count = 64
    max_batch: Count | None = None
    max_pending: Count = 64
    deadline: Count = 30
    read_timeout: Count = 10
    decode_timeout: Count = 5
    decode_memory: Count = 1024
    model_name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,100}$")] = "lipsformer"
    api_keys_file: AbsolutePath | None = None
    cors_origins: Annotated[tuple[str, ...], BeforeValidator(_origins)] = ()
    log: LogFormat = "text"
    access_log: Literal["on", "off"] = "on"
    monitoring: AbsolutePath | None = None
    drift_window: Count = 1000
    shadow: Path | None = None
    shadow_share: Annotated[float, Field(gt=0, le=1)] = 0.1
    watch: Count | None = None

    @property
    def limits(self) -> ImageLimits:
        """The largest image."""
        return ImageLimits(max_bytes=self.max_bytes, max_pixels=self.max_pixels)

    @property
    def max_body(self) -> int:
        """Bytes of the largest body of /classify: a form adds boundaries, part headers and top_k to its image."""
        return self.max_bytes + 16 * 1024

    @property
    def max_batch_body(self) -> int:
        """Bytes of the largest body of /classify_batch: a few of the largest images, or many usual ones."""
        return 4 * self.max_bytes


def worker_count(environment: Mapping[str, str]) -> int:
    """The number of worker processes, which is needed before all settings can be read.

    Raises:
        InputError: if LIPSFORMER_WORKERS is not a whole number of at least 1.
    """
    return _WorkerCount.from_environment(environment).workers


def _default_workers(environment: Mapping[str, str]) -> int:
    gpus = 0 if environment.get("LIPSFORMER_DEVICE") == "cpu" else len(visible_gpus(environment))
    return gpus or math.ceil(cores() / CORES_PER_WORKER)
