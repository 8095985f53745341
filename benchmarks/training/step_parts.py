"""Where the CPU time of a training step goes: each operation of the forward and backward pass, summed by part."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from lipsformer.model import cpu_ops
from lipsformer.system.markdown import markdown_table

LINEAR, ATTENTION, NORMS, GELU, REST = "linear products", "attention", "norms", "GELU", "rest: sums, copies, views"
FORWARD, INPUTS, WEIGHTS = (f"depthwise convolutions, {what}" for what in ("forward", "inputs", "weights"))
OPTIMIZER = "clipping, AdamW"
PARTS = (LINEAR, ATTENTION, FORWARD, INPUTS, WEIGHTS, NORMS, GELU, OPTIMIZER, REST)
BY_OPERATION = {
    **dict.fromkeys(("mm", "addmm", "convolution", "convolution_backward"), LINEAR),  # but for the depthwise ones
    **dict.fromkeys(("bmm", "baddbmm", "_softmax", "_softmax_backward_data"), ATTENTION),
    "_scaled_dot_product_flash_attention_for_cpu": ATTENTION,
    "_scaled_dot_product_flash_attention_for_cpu_backward": ATTENTION,
    **dict.fromkeys(("native_layer_norm", "native_layer_norm_backward"), NORMS),
    **dict.fromkeys(("gelu", "gelu_backward"), GELU),
}
# Functions whose operations belong to one part, whatever they are
BY_FUNCTION = (
    (cpu_ops.DepthwiseConv, "forward", FORWARD),
    (cpu_ops.DepthwiseConv, "backward", INPUTS),
    (cpu_ops, "weight_gradient", WEIGHTS),
    (cpu_ops.L2Normalize, "forward", ATTENTION),
    (cpu_ops.L2Normalize, "backward", ATTENTION),
    (cpu_ops.CenterAffine, "forward", NORMS),
    (cpu_ops.CenterAffine, "backward", NORMS),
    (torch.optim.AdamW, "step", OPTIMIZER),
    (torch.nn.utils, "clip_grad_norm_", OPTIMIZER),
)
NOTE = """
One thread; CPU time, which other processes affect little; medians of {rounds} rounds, a step of each model in turn.
Shares of the peak count matrix products and convolutions. The peak is that of a product of {side} x {side} matrices
in {precision}, {peak:.0f} GFLOP/s. "inputs" and "weights" are gradients; the former includes the bias's. The 1x1
convolutions are linear products."""


class TimedParts(TorchDispatchMode):
    """While active, sums CPU seconds and floating-point operations by part."""

    def __init__(self) -> None:
        super().__init__()
        self.labels: list[str] = []
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.operations: defaultdict[str, int] = defaultdict(int)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        packet, options = func.overloadpacket, kwargs or {}
        started = time.process_time()
        out = func(*args, **options)
        seconds = time.process_time() - started
        part = self.labels[-1] if self.labels else BY_OPERATION.get(packet.__name__, REST)
        self.seconds[part] += seconds
        if packet in flop_registry:
            self.operations[part] += flop_registry[packet](*args, **options, out_val=out)
        return out

    def labeled(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.labels.append(part)
            try:
                return function(*args, **kwargs)
            finally:
                self.labels.pop()

        return call

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for owner, name, part in BY_FUNCTION:
                wrapped: Any = self.labeled(getattr(owner, name), part)
                static = isinstance(vars(owner)[name], staticmethod)
                stack.enter_context(mock.patch.object(owner, name, staticmethod(wrapped) if static else wrapped))
            stack.enter_context(self)
            yield


def measure_parts(steps: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[TimedParts]]:
    """Every model's parts in each of the interleaved rounds."""
    found: dict[str, list[TimedParts]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, step in steps.items():
            parts = TimedParts()
            with parts.active():
                step()
            if number:  # the first is a warm-up
                found[name].append(parts)
    return found


def parts_table(found: Mapping[str, list[TimedParts]], peak: float) -> str:
    """Milliseconds, share of the step and share of the peak of each part, one group of columns per model."""
    medians = {
        name: {part: statistics.median(one.seconds[part] for one in rounds) for part in PARTS}
        for name, rounds in found.items()
    }
    headings, rows = ["part"], []
    for name in found:
        headings += [f"{name}, ms", "of its step", "of the peak"]
    for part in (*PARTS, "all"):
        cells = [part]
        for name, rounds in found.items():
            total = sum(medians[name].values())
            seconds = total if part == "all" else medians[name][part]
            operations = sum(rounds[0].operations.values()) if part == "all" else rounds[0].operations[part]
            share = f"{operations / seconds / peak:.0%}" if operations else ""
            cells += [f"{seconds * 1e3:.0f}", f"{seconds / total:.0%}", share] if seconds else ["", "", ""]
        rows.append(cells)
    return markdown_table(headings, rows, "l" + "rrr" * len(found))
