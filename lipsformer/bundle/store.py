"""Bundles in BentoML's model store, for its tools to list, send and pack: `bentoml:NAME:VERSION`."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lipsformer.system.errors import InputError
from lipsformer.system.extras import require

from .manifest import MANIFEST_NAME, Manifest, read_manifest

__all__ = ["check_tag", "register_bundle", "resolve_bundle"]

PREFIX = "bentoml:"


def check_tag(tag: str) -> None:
    """Checks that a bundle can be registered under `tag`.

    Raises:
        InputError: if `tag` is not NAME or NAME:VERSION, or that version is already in the store.
    """
    bentoml = _import_bentoml(f"--bentoml {tag}")
    try:
        wanted = bentoml.Tag.from_str(tag)
    except (ValueError, bentoml.exceptions.BentoMLException) as error:
        raise InputError(f"--bentoml {tag}: NAME or NAME:VERSION is needed ({error})") from None
    if wanted.version == "latest":
        raise InputError(f"--bentoml {tag}: 'latest' is BentoML's name for the newest; choose another version")
    if wanted.version is not None:
        with contextlib.suppress(bentoml.exceptions.BentoMLException):  # there is none, or several begin like it
            if bentoml.models.get(wanted).tag == wanted:  # not only one that begins like it
                raise InputError(f"--bentoml {tag}: already in the store; choose another version")


def register_bundle(bundle: Path, tag: str) -> str:
    """Copies `bundle` into BentoML's model store, as NAME:VERSION, or as NAME with a version that BentoML generates.

    Returns:
        Its tag, with the version.

    Raises:
        InputError: if `bundle` is no bundle, or cannot be registered as `tag`.
        GateError: if a file of the bundle does not match its manifest.
    """
    manifest = read_manifest(bundle)
    check_tag(tag)
    bentoml = _import_bentoml(tag)
    facts = {name: value for name, value in dataclasses.asdict(manifest).items() if name != "files"}
    with bentoml.models.create(tag, labels=_labels(manifest), metadata=_plain(facts)) as model:
        for name in (MANIFEST_NAME, *(file.name for file in manifest.files)):
            shutil.copyfile(bundle / name, Path(model.path) / name)
        read_manifest(Path(model.path))  # the copies have the hashes too
    return str(model.tag)


def resolve_bundle(bundle: str | Path) -> Path:
    """The folder of `bentoml:NAME:VERSION` in BentoML's model store, of the newest version without one.

    Any other `bundle`, and one that exists as a path, is a path and is returned unchanged.

    Raises:
        InputError: if the store has no bundle of this name.
    """
    path, name = Path(bundle), str(bundle)
    if path.exists() or not name.startswith(PREFIX):
        return path
    bentoml, tag = _import_bentoml(name), name.removeprefix(PREFIX)
    try:
        return Path(bentoml.models.get(tag).path)
    except (ValueError, bentoml.exceptions.BentoMLException) as error:
        raise InputError(f"bentoml:{tag}: {error}; `bentoml models list` shows what the store has") from None


def _import_bentoml(what: str) -> Any:
    require("serve", what=what)
    os.environ.setdefault(
        "BENTOML_DO_NOT_TRACK", "True"
    )  # read when a model is registered: BentoML would send usage statistics
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
    """`value` without None and tuples, which the store's metadata cannot hold."""
    if isinstance(value, Mapping):
        return {name: _plain(part) for name, part in value.items() if part is not None}
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value
