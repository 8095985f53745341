"""A bundle as a model repository of NVIDIA's Triton Inference Server.

No Triton has run this yet: the tests parse the configurations by the schema that its clients are generated from.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

from lipsformer.bundle.manifest import BundleFile, Manifest, read_manifest
from lipsformer.inference.runtimes import INPUT_NAME, OUTPUT_NAME
from lipsformer.system.atomic import sha256_of
from lipsformer.system.errors import GateError, InputError

__all__ = ["write_triton"]

LABELS = "labels.txt"
QUEUE_DELAY_MICROSECONDS = 1000  # little beside the milliseconds of a batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Backend:
    """How Triton runs a kind of file: its platform, the name that it looks for, and where instances run."""

    platform: str
    filename: str
    instances: str


BACKENDS = {
    ("onnx", "ort"): Backend(platform="onnxruntime_onnx", filename="model.onnx", instances="KIND_AUTO"),
    ("engine", "tensorrt"): Backend(platform="tensorrt_plan", filename="model.plan", instances="KIND_GPU"),
}

# Without a name: then it is the folder's, which may be renamed. No preferred batch sizes: one optimization profile
# serves all sizes alike. The warm-up runs before Triton calls the model ready.
CONFIG = """\
platform: "{platform}"
max_batch_size: {max_batch}
input [ {{ name: "{input}" data_type: TYPE_UINT8 dims: [ {size}, {size}, 3 ] }} ]
output [ {{ name: "{output}" data_type: TYPE_FP32 dims: [ {classes} ] label_filename: "{labels}" }} ]
instance_group [ {{ count: 1 kind: {instances} }} ]
dynamic_batching {{ max_queue_delay_microseconds: {delay} }}
version_policy {{ latest {{ num_versions: 1 }} }}
"""
WARM_UP = """\
model_warmup [ {{
  name: "batch of {batch}"
  batch_size: {batch}
  inputs {{ key: "{input}" value {{ data_type: TYPE_UINT8 dims: [ {size}, {size}, 3 ] zero_data: true }} }}
}} ]
"""


def write_triton(bundle: Path, folder: Path) -> tuple[str, ...]:
    """Fills the empty `folder`: a model for each graph of ONNX Runtime and each engine of TensorRT in `bundle`.

    Each takes the pixels that the manifest's preprocessing gives, uint8 (S, S, 3), in batches up to the largest that
    was proved, and answers logits.

    Returns:
        The names of the models.

    Raises:
        InputError: if `bundle` is not one, or a class name cannot stand on a line of a label file.
        GateError: if a file of the bundle does not have the hash that its manifest promises.
    """
    manifest = read_manifest(bundle)
    for label in manifest.classes:
        if len(label.splitlines()) != 1:
            raise InputError(f"{bundle}: class {label!r} is not one line, which Triton's label files need; rename it")
    files = [file for file in manifest.files if (file.kind, file.target) in BACKENDS]
    for file in files:
        _write_model(bundle, manifest, file, folder / _name(file))
    return tuple(_name(file) for file in files)


def _name(file: BundleFile) -> str:
    return f"lipsformer-{Path(file.name).stem}"


def _write_model(bundle: Path, manifest: Manifest, file: BundleFile, folder: Path) -> None:
    backend = BACKENDS[file.kind, str(file.target)]
    version = folder / "1"
    version.mkdir(parents=True)
    copy = Path(shutil.copyfile(bundle / file.name, version / backend.filename))
    if sha256_of(copy) != file.sha256:  # it was right before it was copied
        raise GateError(f"{bundle / file.name}: changed while it was copied; export the bundle again")
    (folder / LABELS).write_text("".join(f"{label}\n" for label in manifest.classes), encoding="utf-8")
    (folder / "config.pbtxt").write_text(_config(manifest, backend), encoding="utf-8")


def _config(manifest: Manifest, backend: Backend) -> str:
    size = manifest.preprocessing.image_size
    config = CONFIG.format(
        platform=backend.platform,
        max_batch=manifest.max_batch,
        input=INPUT_NAME,
        output=OUTPUT_NAME,
        size=size,
        classes=len(manifest.classes),
        labels=LABELS,
        instances=backend.instances,
        delay=QUEUE_DELAY_MICROSECONDS,
    )
    warm_up = [WARM_UP.format(batch=batch, input=INPUT_NAME, size=size) for batch in sorted({1, manifest.max_batch})]
    return config + "".join(warm_up)
