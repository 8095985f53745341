"""The model repository for Triton: its configuration parses by Triton's schema and says what the graph says."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

from lipsformer.bundle.manifest import BundleFile, read_manifest
from lipsformer.export.triton import write_triton
from lipsformer.inference.runtimes import OnnxRuntime
from lipsformer.system.atomic import sha256_of
from lipsformer.system.errors import GateError, InputError
from tests.support.trained import Trained

# The part of Triton's model_config.proto that is used, with the numbers and types of tritonclient 2.73: * is repeated.
SCHEMA = {
    "ModelConfig": {
        "platform": (2, "string"),
        "version_policy": (3, "ModelVersionPolicy"),
        "max_batch_size": (4, "int32"),
        "input": (5, "ModelInput*"),
        "output": (6, "ModelOutput*"),
        "instance_group": (7, "ModelInstanceGroup*"),
        "dynamic_batching": (11, "ModelDynamicBatching"),
        "model_warmup": (16, "ModelWarmup*"),
    },
    "ModelVersionPolicy": {"latest": (1, "Latest")},
    "Latest": {"num_versions": (1, "uint32")},
    "ModelInput": {"name": (1, "string"), "data_type": (2, "DataType"), "dims": (4, "int64*")},
    "ModelOutput": {
        "name": (1, "string"),
        "data_type": (2, "DataType"),
        "dims": (3, "int64*"),
        "label_filename": (4, "string"),
    },
    "ModelInstanceGroup": {"count": (2, "int32"), "kind": (4, "Kind")},
    "ModelDynamicBatching": {"max_queue_delay_microseconds": (2, "uint64")},
    "ModelWarmup": {"name": (1, "string"), "batch_size": (2, "uint32"), "inputs": (3, "InputsEntry*")},
    "InputsEntry": {"key": (1, "string"), "value": (2, "Input")},  # of a map
    "Input": {"data_type": (1, "DataType"), "dims": (2, "int64*"), "zero_data": (3, "bool")},
}
ENUMS = {
    "DataType": {"TYPE_INVALID": 0, "TYPE_UINT8": 2, "TYPE_FP32": 11},
    "Kind": {"KIND_AUTO": 0, "KIND_GPU": 1, "KIND_CPU": 2},
}


def schema() -> Any:
    """The class of ModelConfig."""
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="model_config.proto", package="inference", syntax="proto3")
    for name, values in ENUMS.items():
        enum = file.enum_type.add(name=name)
        for value, number in values.items():
            enum.value.add(name=value, number=number)
    for message, fields in SCHEMA.items():
        described = file.message_type.add(name=message)
        for name, (number, kind) in fields.items():
            plain = kind.rstrip("*")
            label = field.LABEL_REPEATED if kind.endswith("*") else field.LABEL_OPTIONAL
            if plain in ENUMS or plain in SCHEMA:
                which = field.TYPE_ENUM if plain in ENUMS else field.TYPE_MESSAGE
                described.field.add(name=name, number=number, label=label, type=which, type_name=f".inference.{plain}")
            else:
                described.field.add(name=name, number=number, label=label, type=f"TYPE_{plain.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("inference.ModelConfig"))


def parse(path: Path) -> Any:
    return text_format.Parse(path.read_text(), schema()())


@pytest.fixture
def bundle(trained: Trained, tmp_path: Path) -> Path:
    """The small bundle with two engines, of which Triton runs one."""
    folder = tmp_path / "bundle"
    shutil.copytree(trained.bundle, folder)
    manifest = read_manifest(folder)
    engines = []
    for flavour in ("tensorrt", "tensorrt-rtx"):
        path = folder / f"{flavour}-fp16.engine"
        path.write_bytes(flavour.encode())
        facts: dict[str, Any] = {"target": flavour, "precision": "fp16", "built": {"flavour": flavour}}
        engines.append(BundleFile.describe(path, "engine", parity=manifest.graph().parity, **facts))
    dataclasses.replace(manifest, files=(*manifest.files, *engines)).write(folder)
    return folder


def test_the_repository_says_what_the_graph_says(trained: Trained, bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    assert write_triton(bundle, folder) == ("lipsformer-ort-fp32", "lipsformer-tensorrt-fp16")
    model = folder / "lipsformer-ort-fp32"
    assert sorted(path.relative_to(model).as_posix() for path in model.rglob("*") if path.is_file()) == [
        "1/model.onnx",
        "config.pbtxt",
        "labels.txt",
    ]
    assert sha256_of(model / "1" / "model.onnx") == sha256_of(bundle / "ort-fp32.onnx")
    assert tuple((model / "labels.txt").read_text().splitlines()) == trained.classes

    config, runtime = parse(model / "config.pbtxt"), OnnxRuntime(model / "1" / "model.onnx", device="cpu")
    assert config.platform == "onnxruntime_onnx"
    assert config.max_batch_size == read_manifest(bundle).max_batch
    (image,), answers = runtime.session.get_inputs(), runtime.session.get_outputs()
    assert [(value.name, list(value.dims)) for value in config.input] == [(image.name, image.shape[1:])]
    assert [(value.name, list(value.dims)) for value in config.output] == [
        (answer.name, answer.shape[1:]) for answer in answers
    ]
    assert [answer.name for answer in answers] == ["logits", "features"]
    assert config.input[0].data_type == ENUMS["DataType"]["TYPE_UINT8"]
    assert {output.data_type for output in config.output} == {ENUMS["DataType"]["TYPE_FP32"]}
    assert (model / config.output[0].label_filename).is_file()
    assert [group.kind for group in config.instance_group] == [ENUMS["Kind"]["KIND_AUTO"]]
    assert config.HasField("dynamic_batching")
    assert [sample.batch_size for sample in config.model_warmup] == [1, config.max_batch_size]
    assert [list(sample.inputs[0].value.dims) for sample in config.model_warmup] == [[32, 32, 3]] * 2

    engine = folder / "lipsformer-tensorrt-fp16"
    assert (engine / "1" / "model.plan").read_bytes() == b"tensorrt"
    config = parse(engine / "config.pbtxt")
    assert config.platform == "tensorrt_plan"
    assert [group.kind for group in config.instance_group] == [ENUMS["Kind"]["KIND_GPU"]]


def test_a_whole_image_graph_takes_any_size(bundle: Path, tmp_path: Path) -> None:
    (bundle / "whole-image.onnx").write_bytes(b"whole")
    manifest = read_manifest(bundle)
    whole = BundleFile.describe(bundle / "whole-image.onnx", "whole-image", target="ort", precision="fp32", parity={})
    dataclasses.replace(manifest, files=(*manifest.files, whole)).write(bundle)
    assert "lipsformer-whole-image" in write_triton(bundle, tmp_path / "models")
    config = parse(tmp_path / "models" / "lipsformer-whole-image" / "config.pbtxt")
    assert [(value.name, list(value.dims)) for value in config.input] == [("images", [-1, -1, 3])]
    warm_up = [sample.inputs[0] for sample in config.model_warmup]
    assert [(entry.key, list(entry.value.dims)) for entry in warm_up] == [("images", [32, 32, 3])] * 2


@pytest.mark.parametrize(
    "text",
    ['platfrom: "onnxruntime_onnx"', "input [ { data_type: TYPE_UINT9 } ]", "max_batch_size: many", "output [ { "],
)
def test_the_schema_bites(text: str) -> None:
    with pytest.raises(text_format.ParseError):
        text_format.Parse(text, schema()())


def test_a_class_name_that_is_not_a_line_is_refused(bundle: Path, tmp_path: Path) -> None:
    manifest = read_manifest(bundle)
    dataclasses.replace(manifest, classes=("two\nlines", *manifest.classes[1:])).write(bundle)
    with pytest.raises(InputError, match=r"class 'two\\nlines' is not one line"):
        write_triton(bundle, tmp_path / "models")


def test_a_damaged_bundle_is_refused(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def copy_badly(source: Path, target: Path) -> Path:
        target.write_bytes(source.read_bytes()[:-1])
        return target

    with monkeypatch.context() as patch:
        patch.setattr("lipsformer.export.triton.shutil.copyfile", copy_badly)
        with pytest.raises(GateError, match=r"ort-fp32\.onnx: changed while it was copied"):
            write_triton(bundle, tmp_path / "models")
    (bundle / "ort-fp32.onnx").write_bytes(b"changed")
    with pytest.raises(GateError, match="its SHA-256 is not the manifest's"):
        write_triton(bundle, tmp_path / "others")
