"""How far int8 may move an answer: a bound for every image, and a closer one for given images.

Three networks with the same head. N is the float32 network, folded (`export/folding`). M is N with the weights that the
int8 graph has in its products, and with the input of each product clipped to the interval that its integers cover. G is
the int8 graph. All are taken in real arithmetic, except for the integers of G. Norms are those of L2 over all values of
a map.

Lemma. Rounding to integers that saturate, and back, is x -> clip(x) + r with |r| <= s / 2 for each value, where clip
goes to the interval [a, b] of the integers and s is the step. In the two parts of a fine quantization, with steps s and
t = s / 254, what the first part leaves of an x in [a, b] is at most s / 2 = 127 t, so the second covers it, and
|r| <= t / 2; beyond b the first part gives b and the second is that of x - b, clipped at 127 t. So it is the same with
[a - 128 t, b + 127 t] and the step t.

Theorem 1. For every image x, the features of G and M are at most E apart, and L is a Lipschitz bound of M's features.
Both come from one recursion over the layers. Let two maps at a layer's input be e apart. Then its outputs are at most

* e |W'| apart for a product of M, W' being its weights, since clipping is a projection onto a box, which brings no two
  points farther apart. In G each of its n inputs is also rounded: (e + sqrt(n) s / 2) |W'|;
* e times its Lipschitz bound for any other layer (`lipsformer/model/lipschitz`), and a sum adds what its terms have.
  The queries, keys and values of a window's heads are products of one and the same rounded map, so that attention is
  one layer here, with the bound of its theorem for the weights W'.

E starts with e = 0 behind the stem, which is the same in G and M. L starts with e = 1 at the pixels, without rounding.
Nothing is assumed of the ranges: an image with clipped values is an image of M, too.

Corollary. With w the rows of the head, the lead of class i over j in G changes by at most |w_i - w_j| (L d + 2 E) where
pixels change by d. So G has certificates without N. The rounding of the weights costs them nothing: it is part of M.

Theorem 2. The features of G and N at an image x are at most D(x) apart, by the same recursion with rounding, if
c = |clip(x) W' - x W| is added behind each product, with N's own input x of it, W being N's weights. For

    (clip(x') + r) W' - x W = (clip(x') - clip(x) + r) W' + clip(x) W' - x W.

For changes dq, dk and dv of all queries, keys and values, the proof of attention's theorem (`lipschitz/attention.py`)
bounds the change of the heads by nu epsilon**-1/2 (f1 |dq| + f2 |dk| + f3 |dv|), with its factors f, here the largest
of any head. So a photo's class is the same in G and N if N's lead over each j is above |w_i - w_j| D(x).
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Mapping

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import Tensor, nn

from lipsformer.bundle.certificate import SAFETY, Certificate, Int8Bound
from lipsformer.checkpoints.checkpoint import Checkpoint
from lipsformer.export.folding.affine import Affine
from lipsformer.export.folding.attention import FoldedAttention, FoldedWindows, Unit
from lipsformer.export.folding.network import ConvolutionThenNorm, FoldedBlock, FoldedLipsFormer, FoldedPatchMerging
from lipsformer.export.folding.network import fold as fold_network
from lipsformer.export.parity.reference import Reference
from lipsformer.inference.runtimes import Pixels, Runtime
from lipsformer.model.activation import MaxMin
from lipsformer.model.config import ModelConfig
from lipsformer.model.lipschitz.attention import Heads, attention_bound, term_factors
from lipsformer.model.lipschitz.bounds import GELU_SLOPE
from lipsformer.model.lipschitz.convolution import convolution_norms
from lipsformer.model.lipschitz.spectral import spectral_norm
from lipsformer.system.errors import GateError

from .quantize import REST

__all__ = ["Product", "Recursion", "bound_int8", "clipped", "has_bound", "products_of", "weight_changes"]

OUTWARD = 1e-5  # relative: float32 divides by the step before it rounds, and float64 adds errors of about 1e-12
BATCH = 64


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Product:
    """A product of an int8 graph: the dequantized weights (out, in), and how its input is clipped and rounded."""

    weight: Tensor
    low: float
    high: float
    step: float

    def clip(self, x: Tensor) -> Tensor:
        """The input as the product of M reads it."""
        return x.clamp(self.low, self.high)


def products_of(graph: onnx.ModelProto) -> dict[str, Product]:
    """The quantized products of an int8 graph for ONNX Runtime, by the names of the folded network's layers."""
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
    found = {}
    for node in graph.graph.node:
        if node.op_type != "MatMul" or not node.input[1].endswith(".weight.dequantized"):
            continue
        name, read = (text.removesuffix(".dequantized") for text in (node.input[1], node.input[0]))
        if read.endswith(REST):  # of the same product
            continue
        low, high, step = _interval(values, read)
        if f"{read}{REST}.scale" in values:
            below, above, step = _interval(values, f"{read}{REST}")
            low, high = low + below, high + above
        weight = values[f"{name}.quantized"].astype(np.float64) * values[f"{name}.scales"].astype(np.float64)
        found[name.removesuffix(".weight")] = Product(weight=torch.tensor(weight.T), low=low, high=high, step=step)
    return found


def _interval(values: Mapping[str, np.ndarray], name: str) -> tuple[float, float, float]:
    """What the integers of a rounding cover, and its step."""
    step, zero = float(values[f"{name}.scale"]), values[f"{name}.zero"]
    limits = np.iinfo(zero.dtype)
    return step * (limits.min - int(zero)), step * (limits.max - int(zero)), step


def has_bound(config: ModelConfig) -> bool:
    """Whether the theorems are about such networks: with CenterNorms, and attention whose values are normalized."""
    return config.norm == "center" and config.value_norm


class Recursion:
    """Carries how far two maps are apart from the input of each layer of a folded network to the features.

    Args:
        folded: N, in float64.
        config: its configuration.
        products: those of the int8 graph, by layer.
        rounded: whether one of the two networks rounds the inputs of its products.
        changes: c of theorem 2 by layer, (images,); nothing if both networks have the same weights.

    Raises:
        NotImplementedError: for a layer without a bound here, such as a LayerNorm.
    """

    def __init__(
        self,
        folded: FoldedLipsFormer,
        config: ModelConfig,
        products: Mapping[str, Product],
        *,
        rounded: bool,
        changes: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.folded = folded
        self.config = config
        self.products = products
        self.rounded = rounded
        self.changes = changes or {}
        self.names = {module: name for name, module in folded.named_modules()}

    def stem(self) -> float:
        """The Lipschitz bound of the stem, from pixels in 0..1."""
        size = self.config.image_size
        return 255 * float(convolution_norms(self._convolution(self.folded.stem), size, size).max())

    def features(self, apart: float) -> Tensor:
        """How far the features may be apart, of maps that are `apart` behind the stem: (images,), or a scalar."""
        side, distance = self.config.resolution(0), torch.tensor(apart, dtype=torch.float64)
        for layer in [*self.folded.body, self.folded.last]:
            if isinstance(layer, FoldedBlock):
                distance = self._block(layer, distance, side)
            elif isinstance(layer, FoldedPatchMerging):
                side //= 2
                distance = self._linear(layer.reduction, distance, side)
            else:
                distance = distance * float(convolution_norms(self._convolution(layer), side, side).max())
                side //= 2
        if not self.folded.flat:
            distance = distance / side
        # the same in both networks: it is applied to what is pooled, or is not a matrix
        return spectral_norm(Affine.of(self.folded.norm).weight) * distance * (1 + OUTWARD)

    def _convolution(self, layer: nn.Module) -> nn.Conv2d:
        if not isinstance(layer, ConvolutionThenNorm) or not isinstance(layer.norm, nn.Identity):
            raise NotImplementedError(f"no bound for {layer}")
        return layer.conv

    def _linear(self, layer: nn.Module, distance: Tensor, side: int) -> Tensor:
        if not isinstance(layer, nn.Linear):
            raise NotImplementedError(f"no bound for {layer}")
        return spectral_norm(self._weight(layer)) * (distance + self._rounding(layer, side)) + self._change(layer)

    def _weight(self, layer: nn.Linear) -> Tensor:
        product = self.products.get(self.names[layer])
        return layer.weight if product is None else product.weight

    def _rounding(self, layer: nn.Linear, side: int) -> float:
        """How far rounding may move the input of a product: half a step for each value of the map."""
        product = self.products.get(self.names[layer])
        if product is None or not self.rounded:
            return 0.0
        return product.step / 2 * math.sqrt(side * side * layer.in_features) * (1 + OUTWARD)

    def _change(self, layer: nn.Linear) -> Tensor | float:
        return self.changes.get(self.names[layer], 0.0)

    def _block(self, block: FoldedBlock, distance: Tensor, side: int) -> Tensor:
        for norm in (*block.before, *block.after):
            if not isinstance(norm, nn.Identity):
                raise NotImplementedError(f"no bound for {norm}")
        slope = 1.0 if isinstance(block.activation, MaxMin) else GELU_SLOPE
        for branch in block.branches:
            inner = distance * float(convolution_norms(branch.depthwise, side, side).max()) * slope  # type: ignore[arg-type]
            if branch.mix is not None:
                inner = self._linear(branch.mix, inner, side) * slope  # type: ignore[arg-type]
            scale = 1.0 if branch.scale is None else float(branch.scale.abs().max())  # type: ignore[operator]
            distance = branch.skip * distance + scale * inner  # type: ignore[operator]
        distance = block.skip1 * distance + self._attention(block.attention, distance, side)
        hidden = self._linear(block.fc1, distance, side) * slope
        columns = torch.eye(block.fc1.in_features, dtype=torch.float64)
        trunk = block.trunk(columns) - block.trunk(torch.zeros_like(columns))  # affine: without its constant
        return block.skip2 * spectral_norm(trunk) * distance + self._linear(block.fc2, hidden, side)

    def _attention(self, attention: FoldedAttention, distance: Tensor, side: int) -> Tensor:
        groups = [group for group in attention.groups if isinstance(group, FoldedWindows)]
        layers = [layer for group in groups for layer in (group.query, group.key, group.value)]
        rounding = max(self._rounding(layer, side) for layer in layers)  # of the map that all of them read
        bound = attention_bound([self._heads(group) for group in groups]) + self._lepe_norm(groups)
        out = bound * (distance + rounding) + sum(self._heads_change(group) for group in groups)
        return self._linear(attention.proj, out, side)

    def _heads(self, group: FoldedWindows) -> Heads:
        query, key, value = (
            self._weight(layer).detach().reshape(group.heads, -1, layer.in_features)
            for layer in (group.query, group.key, group.value)
        )
        query_unit, value_unit = group.query_unit, group.value_unit
        if not isinstance(query_unit, Unit) or not isinstance(value_unit, Unit):
            raise NotImplementedError("no bound for attention whose values are not normalized")
        return Heads(
            query=query,
            key=key,
            value=value,
            temperature=query_unit.factor.abs().flatten(),
            value_scale=value_unit.factor.abs().flatten(),
            position_bias=group.bias,
            value_norm=True,
            epsilon=query_unit.epsilon,
            tokens=group.height * group.width,
            unbounded=None,
        )

    def _lepe_norm(self, groups: list[FoldedWindows]) -> float:
        norms = [convolution_norms(group.lepe, group.height, group.width) for group in groups if group.lepe is not None]
        if not norms:
            return 0.0
        values = torch.cat([self._weight(group.value) for group in groups])
        return spectral_norm(torch.cat(norms)[:, None] * values)

    def _heads_change(self, group: FoldedWindows) -> Tensor | float:
        """The sum of theorem 2 for the heads of `group`, and that of LePE, which reads the values as they are."""
        heads = self._heads(group)
        factors = torch.tensor([[0.0], [0.0], [1.0]], dtype=torch.float64)  # the softmax of a single token is 1
        if heads.tokens > 1:
            factors = term_factors(heads.temperature, heads.tokens, heads.position_bias)
        slopes: list[float] = (factors * heads.value_scale * heads.epsilon**-0.5).amax(dim=1).tolist()
        if group.lepe is not None:
            slopes[2] += float(convolution_norms(group.lepe, group.height, group.width).max())
        query, key, value = (self._change(layer) for layer in (group.query, group.key, group.value))
        return slopes[0] * query + slopes[1] * key + slopes[2] * value


def clipped(folded: FoldedLipsFormer, products: Mapping[str, Product]) -> FoldedLipsFormer:
    """M: the network with the weights of the int8 graph, and the inputs of its products clipped, but not rounded."""
    network = copy.deepcopy(folded)
    for name, product in products.items():
        layer = network.get_submodule(name)
        layer.weight = nn.Parameter(product.weight.to(torch.float64), requires_grad=False)
        layer.register_forward_pre_hook(_clip(product))
    return network


def _clip(product: Product) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor]]:
    return lambda _, inputs: (product.clip(inputs[0]),)


def weight_changes(folded: FoldedLipsFormer, products: Mapping[str, Product], pixels: Pixels) -> dict[str, Tensor]:
    """c of theorem 2 by layer: how far clipping and the weights of the int8 graph move its output at each image."""
    found: dict[str, Tensor] = {}

    def observe(name: str, product: Product) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> None:
            x, weight = inputs[0], layer.weight
            moved = F.linear(product.clip(x), product.weight) - F.linear(x, weight)  # type: ignore[arg-type]
            found[name] = moved.flatten(1).norm(dim=1)

        return hook

    hooks = [
        folded.get_submodule(name).register_forward_hook(observe(name, product)) for name, product in products.items()
    ]
    folded(torch.from_numpy(pixels))
    for hook in hooks:
        hook.remove()
    return found


@torch.no_grad()
def bound_int8(
    checkpoint: Checkpoint, certificate: Certificate, graph: onnx.ModelProto, runtime: Runtime, reference: Reference
) -> Int8Bound:
    """The bound of what int8 may change, and what it does change at the images of the parity gate.

    Args:
        checkpoint: the trained model.
        certificate: its own.
        graph: the int8 graph for ONNX Runtime, from `quantize`, of the folded network.
        runtime: what runs the graph.
        reference: the images of the gate.

    Raises:
        GateError: if the graph rounds by more than the bound, at one of the images.
    """
    folded = fold_network(checkpoint.calibrated(), checkpoint.preprocessing)
    products = products_of(graph)
    config = checkpoint.config
    slope = Recursion(folded, config, products, rounded=False)
    lipschitz = float(slope.features(slope.stem()))
    rounding = float(Recursion(folded, config, products, rounded=True).features(0.0))

    network = clipped(folded, products)
    images = np.concatenate([reference.images.photos, reference.images.hard])
    error = _float32_rounding(network, images)
    rounded = _distances(network, runtime, images).max()
    if not rounded <= rounding + error:
        raise GateError(
            f"int8: rounding moves the features of an image by {rounded:.3g}, above its bound {rounding:.3g}; "
            "please report this"
        )

    photos = reference.images.photos
    bounds, measured = [], _distances(folded, runtime, photos)
    for start in range(0, len(photos), BATCH):
        changes = weight_changes(folded, products, photos[start : start + BATCH])
        bounds.append(Recursion(folded, config, products, rounded=True, changes=changes).features(0.0).numpy())
    bound = np.concatenate(bounds)
    logits = reference.photos.logits.astype(np.float64)
    kept = dataclasses.replace(certificate, lipschitz=1.0).radii(logits) > bound  # a lead is a radius of the features
    return Int8Bound(
        lipschitz=lipschitz,
        rounding=rounding,
        error=4 * SAFETY * error,  # two logits at both ends, as in the checkpoint's certificate
        photos=len(photos),
        bound=float(np.median(bound)),
        measured=float(np.median(measured)),
        unchanged=float(kept.mean()),
    )


def _distances(network: FoldedLipsFormer, runtime: Runtime, images: Pixels) -> np.ndarray:
    """How far the features of `runtime` are from those of `network`: (images,)."""
    found = []
    for start in range(0, len(images), BATCH):
        pixels = images[start : start + BATCH]
        features = runtime.infer(pixels).features
        assert features is not None  # noqa: S101 - our graphs give them
        wanted = network(torch.from_numpy(pixels))[1]
        found.append((torch.from_numpy(features).double() - wanted).norm(dim=1).numpy())
    return np.concatenate(found)


def _float32_rounding(network: FoldedLipsFormer, images: Pixels) -> float:
    """The largest difference of a logit, or of the features (L2), between float32 and float64."""
    narrow, worst = copy.deepcopy(network).float(), 0.0
    for start in range(0, len(images), BATCH):
        pixels = torch.from_numpy(images[start : start + BATCH])
        for found, wanted in zip(narrow(pixels), network(pixels), strict=True):
            apart = (found.double() - wanted).flatten(1)
            worst = max(worst, float(apart.abs().max()), float(apart.norm(dim=1).max()))
    return worst
