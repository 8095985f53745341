"""A model repository for NVIDIA's Triton Inference Server from a bundle.

No Triton has run this yet: the tests parse the configurations by the schema that its clients are generated from.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import onnx

from lipsformer.bundle.manifest import BundleFile, Manifest, read_manifest
from lipsformer.inference.runtimes import IMAGES_NAME, INPUT_NAME, LOGITS_NAME
from lipsformer.system.atomic import sha256_of
from lipsformer.system.errors import GateError, InputError

__all__ = ["write_triton"]

LABELS = "labels.txt"
QUEUE_DELAY_MICROSECONDS = 1000  # short compared with the milliseconds of a batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Backend:
    """A Triton backend for one kind of file: its platform, the file name it expects, and where instances run.

    `input` is the name of its input, whose sides are those of the network, or -1 for any.
    """

    platform: str
    filename: str
    instances: str
    input: str = INPUT_NAME


BACKENDS = {
    ("onnx", "ort"): Backend(platform="onnxruntime_onnx", filename="model.onnx", instances="KIND_AUTO"),
    ("whole-image", "ort"): Backend(
        platform="onnxruntime_onnx", filename="model.onnx", instances="KIND_AUTO", input=IMAGES_NAME
    ),
    ("engine", "tensorrt"): Backend(platform="tensorrt_plan", filename="model.plan", instances="KIND_GPU"),
}

# Without a name the model is named after its folder, which may be renamed. No preferred batch sizes: one optimization
# profile serves all sizes. The warm-up runs before Triton reports the model as ready.
CONFIG = """\
platform: "{platform}"
max_batch_size: {max_batch}
input [ {{ name: "{input}" data_type: TYPE_UINT8 dims: [ {side}, {side}, 3 ] }} ]
output [ {outputs} ]
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
    """Fill the empty `folder` with a model for each ONNX Runtime graph and each TensorRT engine of `bundle`.

    Each maps preprocessed pixels, uint8 (S, S, 3), to logits and features, in batches up to the largest checked. A
    whole-image graph takes uint8 (H, W, 3), in batches of images of one size.

    Returns:
        The names of the models.

    Raises:
        InputError: if `bundle` is not a bundle, or a class name is not a single line.
        GateError: if the hash of a file differs from the manifest.
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
    if sha256_of(copy) != file.sha256:  # it was correct before the copy
        raise GateError(f"{bundle / file.name}: changed while it was copied; export the bundle again")
    (folder / LABELS).write_text("".join(f"{label}\n" for label in manifest.classes), encoding="utf-8")
    (folder / "config.pbtxt").write_text(_config(manifest, backend, _outputs(bundle, manifest)), encoding="utf-8")


def _outputs(bundle: Path, manifest: Manifest) -> str:
    """The outputs of the bundle's files, which are those of its first graph: those of format 2 give no features."""
    labels = f' label_filename: "{LABELS}"'
    graph = onnx.load(bundle / manifest.graph().name).graph
    return ", ".join(
        f'{{ name: "{output.name}" data_type: TYPE_FP32 dims: [ {output.type.tensor_type.shape.dim[1].dim_value} ]'
        f"{labels if output.name == LOGITS_NAME else ''} }}"
        for output in graph.output
    )


def _config(manifest: Manifest, backend: Backend, outputs: str) -> str:
    size = manifest.preprocessing.image_size
    config = CONFIG.format(
        platform=backend.platform,
        max_batch=manifest.max_batch,
        input=backend.input,
        outputs=outputs,
        side=-1 if backend.input == IMAGES_NAME else size,
        instances=backend.instances,
        delay=QUEUE_DELAY_MICROSECONDS,
    )
    warm_up = [WARM_UP.format(batch=batch, input=backend.input, size=size) for batch in sorted({1, manifest.max_batch})]
    return config + "".join(warm_up)
