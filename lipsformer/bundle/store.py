"""Bundles in BentoML's model store, where its own tools list, send, and pack them: `bentoml:NAME:VERSION` names one."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lipsformer.system.errors import InputError

from .manifest import MANIFEST_NAME, Manifest, read_manifest

__all__ = ["check_tag", "register_bundle", "stored_bundle"]


def check_tag(tag: str) -> None:
    """Refuses a tag under which no bundle can be registered.

    Raises:
        InputError: if `tag` is not NAME or NAME:VERSION, or the store holds that version already.
    """
    bentoml = _import_bentoml()
    try:
        wanted = bentoml.Tag.from_str(tag)
    except (ValueError, bentoml.exceptions.BentoMLException) as error:
        raise InputError(f"--bentoml {tag}: NAME or NAME:VERSION is needed ({error})") from None
    if wanted.version == "latest":
        raise InputError(f"--bentoml {tag}: 'latest' is what BentoML calls the newest; choose another version")
    if wanted.version is not None:
        with contextlib.suppress(bentoml.exceptions.BentoMLException):  # there is none, or there are several like it
            if bentoml.models.get(wanted).tag == wanted:  # and not only one that begins so
                raise InputError(f"--bentoml {tag}: the store has it already; choose another version")


def register_bundle(bundle: Path, tag: str) -> str:
    """Puts a copy of `bundle` into BentoML's model store, as NAME:VERSION, or as NAME with a version that it gives.

    Returns:
        Its tag, with the version.

    Raises:
        InputError: if `bundle` is not one, or cannot be registered as `tag`.
        GateError: if a file of the bundle does not have the hash that its manifest promises.
    """
    manifest = read_manifest(bundle)
    check_tag(tag)
    bentoml = _import_bentoml()
    facts = {name: value for name, value in dataclasses.asdict(manifest).items() if name != "files"}
    with bentoml.models.create(tag, labels=_labels(manifest), metadata=_plain(facts)) as model:
        for name in (MANIFEST_NAME, *(file.name for file in manifest.files)):
            shutil.copyfile(bundle / name, Path(model.path) / name)
        read_manifest(Path(model.path))  # the copies have the hashes too
    return str(model.tag)


def stored_bundle(tag: str) -> Path:
    """The folder of a bundle in BentoML's model store; without a version, of the newest.

    Raises:
        InputError: if the store has none of this name.
    """
    bentoml = _import_bentoml()
    try:
        return Path(bentoml.models.get(tag).path)
    except (ValueError, bentoml.exceptions.BentoMLException) as error:
        raise InputError(f"bentoml:{tag}: {error}; `bentoml models list` shows what there is") from None


def _import_bentoml() -> Any:
    os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")  # read when something is registered; it would call its makers
    import bentoml

    return bentoml


def _labels(manifest: Manifest) -> dict[str, str]:
    return {
        "model": str(manifest.model["architecture"]),
        "classes": str(len(manifest.classes)),
        "precisions": ",".join(dict.fromkeys(file.precision for file in manifest.files if file.precision)),
        "checkpoint": manifest.checkpoint_sha256[:16],
    }


def _plain(value: Any) -> Any:
    """`value` without what the store's metadata cannot hold: None, and tuples."""
    if isinstance(value, Mapping):
        return {name: _plain(part) for name, part in value.items() if part is not None}
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value
