"""Names that stand for the path of a model: trained models, and bundles in BentoML's model store."""

from __future__ import annotations

from pathlib import Path

from lipsformer.bundle.store import resolve_bundle
from lipsformer.system.atomic import sha256_of
from lipsformer.system.errors import InputError, suggest

from .hub import HUB_PREFIX, fetch_from_hub
from .official_weights import OFFICIAL, FetchedWeights, check_sha256, fetch_official

__all__ = ["PRETRAINED", "fetch_model", "is_trained", "resolve_model"]

FOLDER = Path(__file__).parent / "weights"
PRETRAINED = {name: FOLDER / f"{name}.safetensors" for name in ("lipsformer_cifar10", "lipsformer_cifar10_certified")}


def resolve_model(model: str | Path) -> Path:
    """Resolve the name of a trained model to its checkpoint; any other `model` is a path and is returned unchanged.

    Official weights are downloaded at their first use, `hf:OWNER/NAME[@REVISION]` from the Hugging Face Hub.
    `bentoml:NAME` and `bentoml:NAME:VERSION` name bundles in BentoML's model store. An existing file or folder of the
    same name takes precedence. Commands and the public API resolve names; everything below takes a path.

    Raises:
        InputError: if the store has no such bundle, or a model cannot be fetched.
        GateError: if the file of official weights is a different one than before, or one of the Hub is damaged.
    """
    path, name = Path(model), str(model)
    if path.exists():
        return path
    if name.startswith(HUB_PREFIX):
        return fetch_from_hub(name)
    if name in OFFICIAL:
        return fetch_official(name).checkpoint
    return PRETRAINED.get(name) or resolve_bundle(path)


def is_trained(model: str) -> bool:
    """Whether `model` names weights, as a path or a name, and not just a variant."""
    return model in PRETRAINED or model in OFFICIAL or model.startswith(HUB_PREFIX) or model.endswith(".safetensors")


def fetch_model(name: str, sha256: str | None = None) -> FetchedWeights:
    """Fetches a trained model by its name, now instead of at its first use.

    Args:
        name: of a trained model; a path is accepted, too.
        sha256: the SHA-256 that the fetched file must have, hexadecimal.

    Raises:
        InputError: if `name` or `sha256` is not valid, or the model cannot be fetched.
        GateError: if the file has another SHA-256, or a different one than before.
    """
    if sha256 is not None and (len(sha256) != 64 or set(sha256.lower()) - set("0123456789abcdef")):
        raise InputError(f"--sha256 {sha256}: 64 hexadecimal digits are needed, as `sha256sum` prints them")
    if name in OFFICIAL:
        return fetch_official(name, sha256)
    checkpoint = resolve_model(name)
    if not checkpoint.is_file():
        raise InputError(f"{name}: no trained model of this name; {suggest(name, [*PRETRAINED, *OFFICIAL])}")
    found = sha256_of(checkpoint)
    if sha256 is not None:
        check_sha256(name, found, sha256)
    return FetchedWeights(checkpoint=checkpoint, sha256=found)
