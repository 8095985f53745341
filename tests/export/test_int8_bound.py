"""The theorems of int8: nothing that is tried gets above the bound, and a graph with doubled steps does."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from lipsformer import Preprocessing
from lipsformer.bundle.certificate import Certificate
from lipsformer.bundle.manifest import read_manifest
from lipsformer.checkpoints.certificate import certificate_of
from lipsformer.checkpoints.checkpoint import Checkpoint
from lipsformer.export import ExportSettings, export_bundle
from lipsformer.export.folding.network import FoldedLipsFormer, fold
from lipsformer.export.graph import build_graph
from lipsformer.export.int8.bound import Recursion, bound_int8, clipped, products_of, weight_changes
from lipsformer.export.int8.quantize import REST, quantize
from lipsformer.export.parity.gate_images import GateImages
from lipsformer.export.parity.reference import Reference
from lipsformer.inference.predictor import load_predictor
from lipsformer.inference.runtimes import OnnxRuntime, Pixels, TorchRuntime, open_session
from lipsformer.model.config import ModelConfig
from lipsformer.model.factory import build_model
from lipsformer.model.init_weights import init_weights
from lipsformer.model.lipschitz.spectral import spectral_norm
from lipsformer.model.residual import ConvexResidual
from lipsformer.system.errors import GateError
from lipsformer.train.optim.spectral_cap import SpectralCap
from tests.support.models.certified import NAMES, make_certified, make_labeled_photos
from tests.support.models.small_models import CERTIFIED, CSWIN
from tests.support.tiny_training import one_thread

STRIPES = CSWIN.replace(
    image_size=32, patch_size=4, embed_dim=16, num_heads=(2, 2), split_sizes=(2, 2), residual="convex",
    activation="maxmin", pooling="mean", epsilon=1.0, temperature=0.25, learned_scales=True, conv_kernel=3,
    depths=(1, 1),
)  # fmt: skip
CONFIGS = {"swin": CERTIFIED.replace(embed_dim=16), "cswin": STRIPES}


class Case:
    """A certified model, its int8 graph, and the networks N and M of the theorem."""

    def __init__(self, config: ModelConfig, *, fine: bool) -> None:
        torch.manual_seed(0)
        model = build_model(config)
        init_weights(model, "orthogonal")
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
            for module in model.modules():
                if isinstance(module, ConvexResidual):
                    module.logit.fill_(-2.0)  # with more of each branch, random ones shrink every difference
        SpectralCap(model, 1.0).start()
        self.config, self.fine = config, fine
        self.checkpoint = Checkpoint(
            model=model.eval(), config=config, classes=NAMES, metrics={},
            preprocessing=Preprocessing(image_size=32, crop_pct=1.0),
        )  # fmt: skip
        random = np.random.default_rng(0)
        coarse = random.integers(0, 256, (24, 8, 8, 3), dtype=np.uint8)
        self.photos: Pixels = coarse.repeat(4, axis=1).repeat(4, axis=2)
        floating = build_graph(self.checkpoint, max_batch=4)
        self.graph = quantize(floating, self.photos // 2 + 60, target="ort", fine=fine)  # some photos are clipped
        self.products = products_of(self.graph)
        self.exact: FoldedLipsFormer = fold(model, self.checkpoint.preprocessing)
        self.clipped = clipped(self.exact, self.products)

    @property
    def rounding(self) -> float:
        return float(Recursion(self.exact, self.config, self.products, rounded=True).features(0.0))

    def run(self, pixels: Pixels) -> torch.Tensor:
        outputs = open_session(self.graph.SerializeToString(), cuda=False).run(["features"], {"pixels": pixels})
        return torch.from_numpy(outputs[0]).double()


@pytest.fixture(scope="module", params=[("swin", True), ("swin", False), ("cswin", True)])
def case(request: pytest.FixtureRequest) -> Case:
    family, fine = request.param
    return Case(CONFIGS[family], fine=fine)


def ascend(case: Case, steps: int = 8) -> Pixels:
    """Images at which the features of M are far from those of N, by gradient ascent from the photos."""
    x = torch.from_numpy(case.photos[:8]).double()
    for _ in range(steps):
        x.requires_grad_()
        apart = (case.clipped(x)[1] - case.exact(x)[1]).norm(dim=1).sum()
        (slope,) = torch.autograd.grad(apart, x)
        x = (x.detach() + 12 * slope.sign()).clamp(0, 255)
    return x.round().to(torch.uint8).numpy()


def climb(case: Case, pixels: Pixels, steps: int = 20) -> Pixels:
    """Images at which rounding moves the features far, by a random search that keeps what moves them farther."""
    random = np.random.default_rng(1)
    best = pixels.copy()
    farthest = (case.run(best) - case.clipped(torch.from_numpy(best))[1]).norm(dim=1).numpy()
    for _ in range(steps):
        tried = np.where(random.random(best.shape) < 0.1, random.integers(0, 256, best.shape), best).astype(np.uint8)
        found = (case.run(tried) - case.clipped(torch.from_numpy(tried))[1]).norm(dim=1).numpy()
        better = found > farthest
        best[better], farthest[better] = tried[better], found[better]
    return best


def tried(case: Case) -> Pixels:
    random = np.random.default_rng(2)
    noise = random.integers(0, 256, (16, 32, 32, 3), dtype=np.uint8)
    found = [case.photos, noise, np.where(noise < 128, 0, 255).astype(np.uint8), ascend(case)]
    return np.concatenate([*found, climb(case, case.photos[:8])])


@torch.no_grad()
def measure(case: Case) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of all images that are tried: |G - M|, |G - N|, and the bound D of the latter."""
    with torch.enable_grad():
        images = tried(case)
    changes = weight_changes(case.exact, case.products, images)
    bound = Recursion(case.exact, case.config, case.products, rounded=True, changes=changes).features(0.0)
    found, pixels = case.run(images), torch.from_numpy(images)
    return (found - case.clipped(pixels)[1]).norm(dim=1), (found - case.exact(pixels)[1]).norm(dim=1), bound


def test_no_image_gets_above_the_bounds(case: Case) -> None:
    rounded, changed, bound = measure(case)
    assert 0.01 * case.rounding < float(rounded.max()) < case.rounding + 1e-5
    assert (changed <= bound).all()
    assert float((changed / bound).max()) > 0.05


def test_no_two_images_get_above_the_lipschitz_bound(case: Case) -> None:
    recursion = Recursion(case.exact, case.config, case.products, rounded=False)
    bound = float(recursion.features(recursion.stem()))
    x = torch.from_numpy(case.photos[:4]).double()
    change = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    steepest = 0.0
    for _ in range(8):  # power iteration, and larger changes than the slope alone is about
        change.requires_grad_()
        slopes = (case.clipped(x + change)[1] - case.clipped(x)[1]).norm(dim=1)
        (slope,) = torch.autograd.grad(slopes.sum(), change)
        steepest = max(steepest, 255 * float((slopes / change.flatten(1).norm(dim=1)).detach().max()))
        change = 5 * slope / slope.flatten(1).norm(dim=1)[:, None, None, None]
    assert 0.1 * bound < steepest < bound
    unquantized = Recursion(case.exact, case.config, {}, rounded=False)
    own = certificate_of(case.checkpoint)
    assert own is not None
    assert float(unquantized.features(unquantized.stem())) == pytest.approx(own.lipschitz, rel=0.2)


def test_the_finer_part_is_254_times_finer() -> None:
    fine, coarse = (Case(CONFIGS["swin"], fine=fine) for fine in (True, False))
    assert coarse.rounding == pytest.approx(254 * fine.rounding, rel=0.2)  # their weights differ
    for name, product in fine.products.items():
        assert product.low < coarse.products[name].low
        assert product.step == pytest.approx(coarse.products[name].step / 254)


def with_steps(graph: onnx.ModelProto, factor: float) -> onnx.ModelProto:
    """A copy of an int8 graph in which the smallest steps of all activations are `factor` times as large."""
    spoiled = copy.deepcopy(graph)
    scales = {tensor.name: tensor for tensor in spoiled.graph.initializer if tensor.name.endswith(".scale")}
    for name, tensor in scales.items():
        if f"{name.removesuffix('.scale')}{REST}.scale" not in scales:
            tensor.CopyFrom(numpy_helper.from_array(np.float32(factor) * numpy_helper.to_array(tensor), name))
    return spoiled


@pytest.mark.parametrize("fine", [True, False])
def test_one_product_reaches_its_bound_and_with_doubled_steps_exceeds_it(fine: bool) -> None:
    """A product of rank one, and the pixels that are rounded most, each in the direction that its weight wants."""
    random = np.random.default_rng(0)
    signs = random.choice([-1.0, 1.0], 12)
    weights = np.outer(signs, np.ones(8)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["pixels"], ["cast"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["cast", "factor"], ["x"]),
        helper.make_node("MatMul", ["x", "layer.weight"], ["logits"]),
    ]
    pixels = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", 1, 1, 12])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 1, 1, 8])
    constants = [
        numpy_helper.from_array(weights, "layer.weight"),
        numpy_helper.from_array(np.float32(math.pi), "factor"),
    ]
    graph = helper.make_graph(nodes, "product", [pixels], [logits], constants)
    floating = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    quantized = quantize(floating, np.full((20, 1, 1, 12), 173, np.uint8), target="ort", fine=fine)
    (product,) = products_of(quantized).values()
    bound = product.step / 2 * math.sqrt(12) * spectral_norm(product.weight)

    def farthest(graph: onnx.ModelProto) -> float:
        session = open_session(graph.SerializeToString(), cuda=False)
        values = np.arange(256, dtype=np.uint8)[:, None, None, None].repeat(12, axis=3)
        exact = product.clip(torch.from_numpy(values).double() * float(np.float32(math.pi)))
        unit = np.zeros((12, 256, 1, 1, 12), np.uint8)  # one value at a time, to see how each is rounded
        for index in range(12):
            unit[index, ..., index] = np.arange(256)[:, None, None]
        moved = session.run(None, {"pixels": unit.reshape(-1, 1, 1, 12)})[0].reshape(12, 256, 8)[..., 0]
        wanted = signs[:, None] * exact[:, 0, 0, 0].numpy()
        worst = (moved - moved[:, :1] - wanted).argmax(axis=1).astype(np.uint8).reshape(1, 1, 1, 12)
        found = torch.from_numpy(session.run(None, {"pixels": worst})[0]).double()
        x = torch.from_numpy(worst).double() * float(np.float32(math.pi))
        return float((found - product.clip(x) @ product.weight.T).norm())

    assert 0.8 * bound < farthest(quantized) <= bound * 1.01
    assert farthest(with_steps(quantized, 2)) > 1.2 * bound


def test_a_graph_that_rounds_more_than_its_bound_is_not_exported(tmp_path: Path) -> None:
    case = Case(CONFIGS["swin"], fine=True)
    certificate = certificate_of(case.checkpoint)
    assert certificate is not None
    images = GateImages.of(case.photos, None, "squares")
    reference = Reference.of(TorchRuntime(case.checkpoint), images)

    def bound(graph: onnx.ModelProto) -> float:
        onnx.save(graph, tmp_path / "graph.onnx")
        runtime = OnnxRuntime(tmp_path / "graph.onnx", device="cpu")
        return bound_int8(case.checkpoint, certificate, case.graph, runtime, reference).rounding

    assert bound(case.graph) == case.rounding
    with pytest.raises(GateError, match=r"int8: rounding moves the features of an image by .*, above"):
        bound(with_steps(case.graph, 64))


def test_a_bundle_carries_the_bound_and_its_answers_are_certified_by_it(tmp_path: Path) -> None:
    checkpoint = make_certified(tmp_path / "model.safetensors")
    photos = make_labeled_photos(tmp_path / "photos", checkpoint, 24)
    settings = ExportSettings(
        precisions=("int8",), calibration=photos, max_batch=2, parity_images=8,
        thresholds={"int8": {"relative_l2": 2.0}},
    )  # fmt: skip
    with one_thread():
        manifest = export_bundle(checkpoint, tmp_path / "bundle", settings)
        files = sorted(photos.rglob("*.png"))
        own, exported = (load_predictor(path, "cpu").predict(files) for path in (checkpoint, tmp_path / "bundle"))
    assert read_manifest(tmp_path / "bundle").files == manifest.files
    file = manifest.graph("int8")
    assert file.bound is not None
    assert file.bound.photos == 8
    assert 0 < file.bound.measured < file.bound.bound
    certificate = manifest.certificate_of(file)
    assert certificate is not None
    assert certificate.rounding == 2 * file.bound.rounding
    assert certificate.lipschitz == file.bound.lipschitz
    assert any(answer.certified_radius for answer in exported)
    for before, after in zip(own, exported, strict=True):
        assert before.certified_radius is not None
        assert after.certified_radius is not None
        assert after.certified_radius < before.certified_radius + 0.05


def test_the_rounding_is_subtracted_at_both_ends() -> None:
    certificate = Certificate(lipschitz=2.0, distances=((0.0, 3.0), (3.0, 0.0)), error=0.1, rounding=0.2)
    assert certificate.radii(np.array([[1.0, 0.0]]))[0] == pytest.approx((1 - 0.1 - 3 * 0.2) / 6)
    assert certificate.radii(np.array([[0.6, 0.0]]))[0] == 0.0
