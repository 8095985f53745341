"""ONNX Runtime for WebAssembly: two files of npm's package onnxruntime-web, known by their hashes."""

from __future__ import annotations

import hashlib
import shutil
import tarfile
import tempfile
from pathlib import Path

from lipsformer.datasets.builtin.common import run_downloader
from lipsformer.system.console import say
from lipsformer.system.errors import InputError

__all__ = ["RUNTIME", "SCRIPT", "WASM", "read_runtime"]

RUNTIME = "onnxruntime-web@1.30.0"
SCRIPT = "ort.wasm.bundle.min.mjs"
WASM = "ort-wasm-simd-threaded.wasm"
SHA256 = {
    SCRIPT: "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    WASM: "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
FIX = f"run `npm pack {RUNTIME}`, then export with --web-runtime FILE"


def read_runtime(source: Path | None) -> dict[str, bytes]:
    """The two files by name, from npm or from `source`: the package's .tgz, or a folder in which it was unpacked.

    Raises:
        InputError: if they are not available, or their hashes are not those of the version that was tested.
    """
    if source is not None:
        return _checked(source, _from_folder(source) if source.is_dir() else _from_package(source))
    with tempfile.TemporaryDirectory() as scratch:
        say(f"downloading {RUNTIME} with npm (33 MB)")
        run_downloader([shutil.which("npm") or "npm", "pack", RUNTIME], Path(scratch), FIX)
        package = next(Path(scratch).glob("*.tgz"))
        return _checked(package, _from_package(package))


def _from_folder(folder: Path) -> dict[str, bytes]:
    found = {name: sorted(folder.rglob(name)) for name in SHA256}
    return {name: paths[0].read_bytes() for name, paths in found.items() if paths}


def _from_package(package: Path) -> dict[str, bytes]:
    try:
        with tarfile.open(package, "r:gz") as tar:
            members = {name: tar.extractfile(f"package/dist/{name}") for name in SHA256}
            return {name: member.read() for name, member in members.items() if member is not None}
    except (OSError, EOFError, tarfile.TarError, KeyError) as error:
        raise InputError(f"{package}: not a package of {RUNTIME} ({error}); {FIX}") from None


def _checked(source: Path, files: dict[str, bytes]) -> dict[str, bytes]:
    for name, sha256 in SHA256.items():
        if name not in files:
            raise InputError(f"{source}: no {name} in it; {FIX}")
        if hashlib.sha256(files[name]).hexdigest() != sha256:
            raise InputError(f"{source}: its {name} is not that of {RUNTIME} (another SHA-256); {FIX}")
    return files
