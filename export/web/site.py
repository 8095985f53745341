"""`lipsformer export --web`: a folder of files that classifies photos in the browser, on any web server.

Photos stay in the browser: the page's policy admits requests to its own address alone, and it makes none once it is
loaded. Each file is checked against the manifest before the model starts, so that a half-updated copy does not run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from lipsformer.bundle.acceptance import ACCEPTANCE_NAME
from lipsformer.bundle.manifest import read_manifest
from lipsformer.export.whole_image.graph import WHOLE_IMAGE_NAME
from lipsformer.inference.page import page_files

from .runtime import RUNTIME, SCRIPT, WASM

__all__ = ["write_web"]

MANIFEST_NAME = "manifest.json"
SCRIPTS = ("acceptance.js", "client.js", "reduced-jpeg.js", "worker.js")
POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self' blob:; style-src 'self'; "
    "img-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'"
)
HEAD = f"""<meta http-equiv="Content-Security-Policy" content="{POLICY}">
  <meta name="referrer" content="no-referrer">
  """
FOOTER = f"""<p class="quiet">Photos are classified in this browser and never leave it.</p>
    <p class="quiet"><a href="{MANIFEST_NAME}">About this model</a></p>"""


def write_web(bundle: Path, folder: Path, runtime: Mapping[str, bytes]) -> int:
    """Fill the empty `folder` with the page, ONNX Runtime, and the whole-image graph of `bundle`.

    Args:
        bundle: a bundle that was exported with its whole-image graph.
        folder: where to write.
        runtime: see `read_runtime`.

    Returns:
        The size of all files in bytes.

    Raises:
        InputError: if `bundle` is not a bundle.
        GateError: if the hash of a file differs from the manifest.
    """
    manifest = read_manifest(bundle)
    (whole,) = (file for file in manifest.files if file.kind == "whole-image")
    rule = manifest.read_acceptance(bundle)
    own = resources.files(__package__)
    files = {
        **page_files(head=HEAD, noscript="", footer=FOOTER),
        **{name: (own / name).read_bytes() for name in SCRIPTS},
        **runtime,
        WHOLE_IMAGE_NAME: (bundle / whole.name).read_bytes(),
        **({} if rule is None else {ACCEPTANCE_NAME: rule.to_bytes()}),
    }
    size = sum(map(len, files.values()))
    about = {
        "model": manifest.model,
        "classes": manifest.classes,
        "preprocessing": manifest.preprocessing.to_dict(),
        "precision": whole.precision,
        "checkpoint_sha256": manifest.checkpoint_sha256,
        "created": manifest.created,
        "runtime": RUNTIME,
        "graph": WHOLE_IMAGE_NAME,
        "acceptance": None if rule is None else ACCEPTANCE_NAME,
        "script": SCRIPT,
        "wasm": WASM,
        "bytes": size,
        "files": {
            name: {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
            for name, content in sorted(files.items())
        },
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    (folder / MANIFEST_NAME).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    return size
