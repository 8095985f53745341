"""Static int8: what is quantized and what is not, that ONNX Runtime fuses all of it, and how scales are measured."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import NodeProto, TensorProto, helper, numpy_helper

from lipsformer import Preprocessing
from lipsformer.checkpoints.checkpoint import Checkpoint
from lipsformer.export.graph import build_graph
from lipsformer.export.int8.calibration import measure_moments, measure_ranges
from lipsformer.export.int8.quantize import SCHEMES, quantize
from lipsformer.export.int8.rounding import round_weights
from lipsformer.images.open import open_image
from lipsformer.inference.runtimes import Logits, Pixels, open_session
from lipsformer.model.config import CSwinConfig, ModelConfig
from lipsformer.model.factory import build_model
from lipsformer.system.errors import InputError
from tests.support.models.small_models import CSWIN, SWIN

SIZE = 64
FAMILIES = {
    "swin": SWIN.replace(embed_dim=16, depths=(1, 1, 1, 1)),
    "cswin": CSWIN.replace(embed_dim=16, depths=(1, 1, 1, 1)),
}
TARGETS = tuple(SCHEMES)


@pytest.fixture(scope="module")
def pixels(samples: list[Path]) -> Pixels:
    """The sample photos and their mirror images: 28."""
    spec = Preprocessing(image_size=SIZE)
    photos = np.stack([spec.apply(open_image(path)) for path in samples])
    return np.concatenate([photos, photos[:, :, ::-1]])


@pytest.fixture(scope="module", params=["swin", pytest.param("cswin", marks=pytest.mark.slow)])
def config(request: pytest.FixtureRequest) -> ModelConfig:
    chosen: ModelConfig = FAMILIES[request.param]
    return chosen


@pytest.fixture(scope="module")
def floating(config: ModelConfig) -> onnx.ModelProto:
    """The float32 graph of a model whose parameters are far from their initial values."""
    torch.manual_seed(0)
    model = build_model(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        model.head.weight.mul_(3)
    classes = tuple(f"kind {number}" for number in range(config.num_classes))
    spec = Preprocessing(image_size=SIZE)
    return build_graph(
        Checkpoint(model=model, config=config, classes=classes, preprocessing=spec, metrics={}), max_batch=4
    )


@pytest.fixture(scope="module")
def quantized(floating: onnx.ModelProto, pixels: Pixels) -> dict[str, onnx.ModelProto]:
    return {target: quantize(floating, pixels, target=target) for target in TARGETS}


def products_of(config: ModelConfig) -> int:
    """Matrix products with weights: each block's 1x1 convolution, attention and MLP, and the merges that are none."""
    stages = range(len(config.depths))  # of one block each
    if isinstance(config, CSwinConfig):
        merges = 0  # convolutions with overlap
        groups = sum(1 if config.attends_everywhere(stage) else 2 for stage in stages)
    else:
        merges, groups = len(stages) - 1, len(stages)
    return 4 * len(stages) + 3 * groups + merges - 1  # the last product of all is of what is pooled


def run(graph: onnx.ModelProto, pixels: Pixels) -> Logits:
    logits: Logits = open_session(graph.SerializeToString(), cuda=False).run(None, {"pixels": pixels})[0]
    return logits


def copy_of(graph: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    return copy


def of_type(graph: onnx.ModelProto, *types: str) -> list[NodeProto]:
    return [node for node in graph.graph.node if node.op_type in types]


def constants(graph: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}


def optimized(graph: onnx.ModelProto, folder: Path) -> Counter[str]:
    """The operators of the graph that ONNX Runtime makes of `graph`."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3  # it warns that such a file is for this machine alone
    onnxruntime.InferenceSession(graph.SerializeToString(), options, ["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node)


@pytest.mark.parametrize("target", TARGETS)
def test_products_with_weights_are_quantized_and_nothing_else(
    target: str, config: ModelConfig, quantized: dict[str, onnx.ModelProto]
) -> None:
    graph = quantized[target]
    dequantized = {node.output[0] for node in of_type(graph, "DequantizeLinear")}
    users = [node for node in graph.graph.node if dequantized.intersection(node.input)]
    assert len(users) == products_of(config)
    for node in users:  # so neither a convolution nor a residual sum, a softmax or a Gemm reads a rounded tensor
        assert node.op_type == "MatMul"
        assert set(node.input) <= dequantized
    assert {node.op_type for node in graph.graph.node} >= {"Conv", "Softmax", "Gemm", "Add"}


@pytest.mark.parametrize("target", TARGETS)
def test_the_trunk_goes_on_unrounded(target: str, quantized: dict[str, onnx.ModelProto]) -> None:
    rounded = {node.input[0] for node in of_type(quantized[target], "QuantizeLinear")}
    trunk = [node for node in of_type(quantized[target], "Add") if rounded.intersection(node.input)]
    assert len(trunk) >= 2  # residual sums read the very tensors that are rounded for the products beside them


def test_onnx_runtime_gets_unsigned_activations_and_weights_that_never_saturate(
    quantized: dict[str, onnx.ModelProto],
) -> None:
    values = constants(quantized["ort"])
    zeros = [values[node.input[2]] for node in of_type(quantized["ort"], "QuantizeLinear")]
    assert {zero.dtype.name for zero in zeros} == {"uint8"}
    assert len({int(zero) for zero in zeros}) > 1  # asymmetric
    weights = [value for value in values.values() if value.dtype == np.int8]
    assert max(np.abs(weight).max() for weight in weights) == 64
    assert 2 * 255 * 64 <= np.iinfo(np.int16).max < 2 * 255 * 65


def test_tensorrt_gets_symmetric_int8_alone(quantized: dict[str, onnx.ModelProto]) -> None:
    values = constants(quantized["tensorrt"])
    for node in of_type(quantized["tensorrt"], "QuantizeLinear"):
        assert values[node.input[2]].dtype == np.int8
        assert values[node.input[2]] == 0
    assert {value.dtype.name for value in values.values()} == {"float32", "int8", "int64"}  # no int32 bias
    assert max(np.abs(value).max() for value in values.values() if value.dtype == np.int8) == 127


@pytest.mark.parametrize("target", TARGETS)
def test_every_output_channel_of_the_weights_has_its_scale(
    target: str, floating: onnx.ModelProto, quantized: dict[str, onnx.ModelProto]
) -> None:
    exact, values = constants(floating), constants(quantized[target])
    readers = [node for node in of_type(quantized[target], "DequantizeLinear") if len(node.input) == 2]
    assert len(readers) > 10
    for node in readers:
        integers, scales = (values[name] for name in node.input)
        wanted = exact[node.input[0].removesuffix(".quantized")]
        assert scales.shape == wanted.shape[1:]
        assert np.all(np.abs(integers * scales - wanted) <= scales * 0.5001)
        np.testing.assert_array_equal(np.abs(integers).max(axis=0), SCHEMES[target].largest_weight)


def test_onnx_runtime_fuses_all_of_it(
    config: ModelConfig, quantized: dict[str, onnx.ModelProto], tmp_path: Path
) -> None:
    found = optimized(quantized["ort"], tmp_path)
    assert found["MatMulIntegerToFloat"] == products_of(config)
    assert found["DequantizeLinear"] == 0
    assert found["QuantizeLinear"] == len(of_type(quantized["ort"], "QuantizeLinear"))

    broken = copy_of(quantized["ort"])  # one activation in a type that there is no kernel for, and it is seen
    name = of_type(broken, "QuantizeLinear")[0].input[2]
    zero = next(tensor for tensor in broken.graph.initializer if tensor.name == name)
    zero.CopyFrom(numpy_helper.from_array(np.array(0, np.uint16), name))
    broken.opset_import[0].version = 21  # the first that has it
    found = optimized(broken, tmp_path)
    assert found["MatMulIntegerToFloat"] < products_of(config)
    assert found["DequantizeLinear"] > 0


def test_fine_rounding_is_two_products_of_integers_that_answer_nearer(
    config: ModelConfig,
    floating: onnx.ModelProto,
    quantized: dict[str, onnx.ModelProto],
    pixels: Pixels,
    tmp_path: Path,
) -> None:
    fine = quantize(floating, pixels, target="ort", fine=True)
    found = optimized(fine, tmp_path)
    assert found["MatMulIntegerToFloat"] == 2 * products_of(config)
    weights = [
        {name for name, value in constants(graph).items() if value.dtype == np.int8}
        for graph in (fine, quantized["ort"])
    ]
    assert weights[0] == weights[1]  # they are there once
    wanted = run(floating, pixels[:8])
    errors = [np.linalg.norm(run(graph, pixels[:8]) - wanted) for graph in (fine, quantized["ort"])]
    assert errors[0] < errors[1]  # the weights' rounding is left


def test_weights_that_make_up_for_each_other_change_products_of_alike_inputs_less() -> None:
    random = np.random.default_rng(0)
    inputs = random.normal(size=(500, 3)) @ random.normal(size=(3, 12)) + 0.1 * random.normal(size=(500, 12))
    weights = random.normal(size=(12, 8))
    scales = (np.abs(weights).max(axis=0) / 7).astype(np.float32)
    moments = inputs.T @ inputs
    found, nearest = round_weights(weights, scales, moments, 7), np.rint(weights / scales)
    changes = [np.linalg.norm(inputs @ (weights - integers * scales)) for integers in (found, nearest)]
    assert changes[0] < 0.8 * changes[1]
    assert np.abs(found).max() == 7
    alone = round_weights(weights, scales, np.diag(np.diag(moments)), 7)  # inputs that have nothing in common
    np.testing.assert_array_equal(alone, nearest)
    np.testing.assert_array_equal(round_weights(weights, scales, np.zeros((12, 12)), 7), nearest)


def test_moments_are_those_of_all_positions_of_all_images() -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 2, 2, 3), dtype=np.uint8)
    rows = images.reshape(-1, 3).astype(np.float64)
    found = measure_moments(passing_on(), ["x"], images)
    np.testing.assert_allclose(found["x"], rows.T @ rows)


@pytest.mark.parametrize("target", TARGETS)
def test_the_answers_are_near_and_do_not_depend_on_batch_mates(
    target: str, floating: onnx.ModelProto, quantized: dict[str, onnx.ModelProto], pixels: Pixels
) -> None:
    wanted, found = run(floating, pixels[:8]), run(quantized[target], pixels[:8])
    errors = np.linalg.norm(found - wanted, axis=1) / np.linalg.norm(wanted, axis=1)
    # TensorRT's weights reach 127: ONNX Runtime's products of int8 saturate on CPUs that have AVX2 and no VNNI.
    assert 1e-4 < errors.max() < {"ort": 0.1, "tensorrt": 0.2}[target]
    others = pixels[8:16].copy()
    others[3] = pixels[3]
    others[5] = 255  # dynamic quantization would take its scale from this one
    np.testing.assert_array_equal(run(quantized[target], others)[3], found[3])
    alone = np.concatenate([run(quantized[target], pixels[i : i + 1]) for i in range(8)])
    assert (np.linalg.norm(alone - found, axis=1) / np.linalg.norm(found, axis=1)).max() < 0.02


def test_the_same_images_make_the_same_bytes(
    floating: onnx.ModelProto, quantized: dict[str, onnx.ModelProto], pixels: Pixels
) -> None:
    before = floating.SerializeToString(deterministic=True)
    again = quantize(floating, pixels, target="ort")
    assert again.SerializeToString(deterministic=True) == quantized["ort"].SerializeToString(deterministic=True)
    assert floating.SerializeToString(deterministic=True) == before  # nor is what it was made from touched
    darker = quantize(floating, pixels // 2, target="ort")
    assert darker.SerializeToString(deterministic=True) != again.SerializeToString(deterministic=True)


@pytest.mark.parametrize("target", TARGETS)
def test_what_goes_in_and_out_stays_and_the_file_shrinks(
    target: str, floating: onnx.ModelProto, quantized: dict[str, onnx.ModelProto]
) -> None:
    graph = quantized[target]
    assert list(graph.graph.input) == list(floating.graph.input)
    assert list(graph.graph.output) == list(floating.graph.output)
    told, before = (json.loads(of.metadata_props[0].value) for of in (graph, floating))
    assert told == {**before, "precision": "int8"}
    assert list(graph.opset_import) == list(floating.opset_import)
    assert not any(node.doc_string for node in graph.graph.node)
    assert graph.ByteSize() < 0.8 * floating.ByteSize()
    in_eight_bits = {name.removesuffix(".quantized") for name in constants(graph) if name.endswith(".quantized")}
    assert in_eight_bits
    assert in_eight_bits.isdisjoint(constants(graph))  # they are not there a second time in float


def test_what_has_nothing_to_quantize_is_refused(quantized: dict[str, onnx.ModelProto], pixels: Pixels) -> None:
    with pytest.raises(InputError, match="no float32 product with weights to quantize; give a float32 export"):
        quantize(quantized["ort"], pixels, target="ort")


def test_too_few_images_are_refused(floating: onnx.ModelProto, pixels: Pixels) -> None:
    with pytest.raises(InputError, match="calibration: 15 images, int8 needs at least 16"):
        quantize(floating, pixels[:15], target="ort")


def test_a_network_that_is_not_finite_is_refused(floating: onnx.ModelProto, pixels: Pixels) -> None:
    broken = copy_of(floating)
    stem = next(tensor for tensor in broken.graph.initializer if len(tensor.dims) == 4)
    stem.CopyFrom(numpy_helper.from_array(np.full(tuple(stem.dims), np.nan, np.float32), stem.name))
    with pytest.raises(InputError, match="calibration: the network's values are not finite"):
        quantize(broken, pixels, target="ort")


def passing_on() -> onnx.ModelProto:
    """A graph whose tensor `x` is its pixels."""
    pixels = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", 2, 2, 3])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2, 2, 3])
    nodes = [
        helper.make_node("Cast", ["pixels"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("Neg", ["x"], ["logits"]),
    ]
    graph = helper.make_graph(nodes, "passing on", [pixels], [logits])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_one_odd_image_does_not_make_the_steps_coarser() -> None:
    images = np.full((100, 2, 2, 3), 100, np.uint8)
    images[7] = 255
    assert measure_ranges(passing_on(), ["x", "logits"], images) == {"x": (0.0, 100.0), "logits": (-100.0, 0.0)}
    images[:10] = 255  # but ten of a hundred are not odd
    assert measure_ranges(passing_on(), ["x"], images) == {"x": (0.0, 255.0)}


def test_what_every_image_has_little_of_is_not_cut() -> None:
    images = np.full((100, 2, 2, 3), 10, np.uint8)
    images[:, 0, 0, 0] = 255
    assert measure_ranges(passing_on(), ["x"], images) == {"x": (0.0, 255.0)}
