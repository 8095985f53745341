"""Builds one engine in a process: `python -m lipsformer.export.tensorrt.build_process ORDER ANSWER`, for `build.py`.

ORDER is JSON; ANSWER is the file that gets what came of it: facts, a refusal, or how far it had come when it crashed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
from onnx import TensorProto

from lipsformer.inference.runtimes import INPUT_NAME
from lipsformer.inference.runtimes.tensorrt_compat import PLATFORM
from lipsformer.inference.runtimes.tensorrt_library import (
    FLAVOURS,
    TENSORRT,
    Gpu,
    TensorRt,
    find_gpu,
    load_tensorrt,
    log_of,
    reason,
)
from lipsformer.system.atomic import atomic_write, sha256_of
from lipsformer.system.errors import GateError, InputError
from lipsformer.system.hardware import cache_folder

from .build import EngineRequest

if TYPE_CHECKING:
    import tensorrt as trt

__all__ = ["EngineBuild", "main", "precision_of"]

SHORT_OF_MEMORY = ("workspace", "out of memory", "outofmemory", "insufficient memory")


class EngineBuild:
    """One build by TensorRT's own Python interface, from a graph to a serialized engine.

    Precision is in the graph. The builder may not lower it: TF32, on by default, would make float32 engines answer with
    the mantissa of half precision.

    Raises:
        InputError: if the library or, for full TensorRT, the GPU is missing.
    """

    def __init__(self, order: EngineRequest) -> None:
        self.order = order
        self.graph = Path(order.graph)
        self.title = FLAVOURS[order.flavour].title
        self.library: TensorRt = load_tensorrt(order.flavour)
        self.gpu: Gpu | None = find_gpu(TENSORRT) if order.flavour == TENSORRT else None  # before the Builder
        if order.hardware_compatibility and self.gpu is not None and not self.gpu.compatible:
            raise InputError(f"{self.gpu.name} is older than Ampere: hardware compatibility cannot be had on it")
        self.log = log_of(order.flavour)
        self.notes: list[str] = []
        self.builder = self.library.Builder(self.log)

    def parse(self) -> trt.INetworkDefinition:
        """The graph as a network of TensorRT's.

        Raises:
            GateError: naming the node that it refuses, and why.
        """
        flags = self.library.NetworkDefinitionCreationFlag
        network = self.builder.create_network(1 << int(flags.STRONGLY_TYPED))  # its number differs between versions
        parser = self.library.OnnxParser(network, self.log)
        if not parser.parse_from_file(str(self.graph)):
            raise GateError(f"{self.title} {self.library.__version__} {self._refusal(parser)}")
        shape = tuple(network.get_input(0).shape) if network.num_inputs == 1 else ()
        if len(shape) != 4 or network.get_input(0).name != INPUT_NAME or shape[0] != -1 or min(shape[1:]) < 1:
            raise GateError(f"not a graph that `lipsformer export` wrote ({INPUT_NAME} of a dynamic batch in)")
        return network

    def build(self, network: trt.INetworkDefinition) -> bytes:
        """The engine of a network.

        Raises:
            GateError: if it cannot be built; a lack of memory is named.
        """
        order, library = self.order, self.library
        config = self.builder.create_builder_config()
        config.clear_flag(library.BuilderFlag.TF32)
        image = tuple(network.get_input(0).shape)[1:]
        profile = self.builder.create_optimization_profile()
        largest = (order.max_batch, *image)
        profile.set_shape(INPUT_NAME, (1, *image), largest, largest)
        config.add_optimization_profile(profile)
        if order.workspace is not None:
            config.set_memory_pool_limit(library.MemoryPoolType.WORKSPACE, order.workspace)
        if self.gpu is not None and order.hardware_compatibility:
            config.hardware_compatibility_level = library.HardwareCompatibilityLevel.AMPERE_PLUS
        cache = None if self.gpu is None else self._timing_cache(self.gpu)  # RTX measures nothing when it builds
        if cache is not None:
            self._load_timings(config, cache)
        self.log.take()
        engine = self.builder.build_serialized_network(network, config)
        if engine is None:
            raise GateError(f"{self.title} {library.__version__} {self._failed(self.log.take())}")
        if cache is not None:
            self._save_timings(config, cache)
        return bytes(engine)

    def facts(self) -> dict[str, Any]:
        """What the manifest says of the engine."""
        gpu, order = self.gpu, self.order
        return {
            "flavour": order.flavour,
            "version": self.library.__version__,
            "platform": PLATFORM,
            "gpu": None if gpu is None else gpu.name,
            "compute_capability": None if gpu is None else gpu.compute_capability,
            "cuda": None if gpu is None else gpu.cuda,
            "hardware_compatibility": gpu is None or order.hardware_compatibility,
            "min_batch": 1,
            "opt_batch": order.max_batch,
            "max_batch": order.max_batch,
            "precision": precision_of(onnx.load(self.graph, load_external_data=False)),
            "onnx_sha256": sha256_of(self.graph),
        }

    def _refusal(self, parser: trt.OnnxParser) -> str:
        for error in (parser.get_error(index) for index in range(parser.num_errors)):
            node = f"node '{error.node_name()}' ({error.node_operator()})" if error.node_operator() else "it"
            return f"cannot parse {node}: {reason([error.desc()])}"
        return f"cannot parse it: {reason(self.log.take())}"

    def _failed(self, messages: list[str]) -> str:
        why = reason(messages)
        if any(sign in message.lower() for message in messages for sign in SHORT_OF_MEMORY):
            return f"lacks memory to build it: {why}; raise --workspace, or free memory of the GPU"
        return f"cannot build it: {why}"

    def _timing_cache(self, gpu: Gpu) -> Path:
        if self.order.timing_cache is not None:
            return Path(self.order.timing_cache)
        name = f"timings-{self.library.__version__}-{gpu.name.replace(' ', '-')}.cache"
        return cache_folder() / "tensorrt" / name

    def _load_timings(self, config: trt.IBuilderConfig, path: Path) -> None:
        self.log.take()
        cache = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
        complaint = any("timing cache" in message.lower() for message in self.log.take())
        if cache is None or complaint or not config.set_timing_cache(cache, False):
            self.notes.append(f"{path}: not a timing cache of this TensorRT and GPU; measuring anew")
            if (empty := config.create_timing_cache(b"")) is not None:
                config.set_timing_cache(empty, False)

    def _save_timings(self, config: trt.IBuilderConfig, path: Path) -> None:
        if (cache := config.get_timing_cache()) is None:
            return
        try:
            with atomic_write(path) as draft:
                draft.write_bytes(bytes(cache.serialize()))
        except InputError as error:
            self.notes.append(f"timing cache not kept: {error}")


def precision_of(graph: onnx.ModelProto) -> str:
    """Which of fp32, fp16 and int8 a graph computes in, by its weights and operators."""
    if any(node.op_type == "QuantizeLinear" for node in graph.graph.node):
        return "int8"
    half = any(weight.data_type == TensorProto.FLOAT16 for weight in graph.graph.initializer)
    return "fp16" if half else "fp32"


def main(order: str, answer: Path) -> None:
    """Builds what `order` says and writes what came of it to `answer`, stage by stage."""
    wanted = EngineRequest(**json.loads(order))
    notes: list[str] = []

    def tell(**news: Any) -> None:
        answer.write_text(json.dumps({"notes": notes, **news}), encoding="utf-8")

    tell(stage="it started")
    try:
        build = EngineBuild(wanted)
        notes = build.notes
        tell(stage="it parsed the graph")
        network = build.parse()
        tell(stage="it built the engine")
        engine = build.build(network)
        if wanted.output is not None:
            with atomic_write(Path(wanted.output)) as draft:
                draft.write_bytes(engine)
        tell(built=build.facts())
    except GateError as error:
        tell(failure=str(error))
    except InputError as error:
        tell(usage=str(error))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
