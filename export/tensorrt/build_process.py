"""One engine build by TensorRT, as an object for a separate process; `build.py` runs it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
from onnx import TensorProto

from lipsformer.inference.runtimes import INPUT_NAME
from lipsformer.inference.runtimes.tensorrt_compat import PLATFORM
from lipsformer.inference.runtimes.tensorrt_library import (
    FLAVOURS,
    RTX,
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

if TYPE_CHECKING:
    import tensorrt as trt

__all__ = ["EngineBuild", "EngineRequest", "precision_of"]

SHORT_OF_MEMORY = ("workspace", "out of memory", "outofmemory", "insufficient memory")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineRequest:
    """The engine to build; without an `output`, it is built and discarded."""

    graph: Path
    output: Path | None
    max_batch: int
    flavour: str
    workspace: int | None = None
    hardware_compatibility: bool = False
    timing_cache: Path | None = None


class EngineBuild:
    """One build by TensorRT's Python API, from a graph to a serialized engine.

    The graph holds the precision, and the builder may not lower it. TF32, which is on by default, would give float32
    engines the mantissa of half precision.

    Raises:
        InputError: if the library or, for full TensorRT, the GPU is missing.
    """

    def __init__(self, request: EngineRequest) -> None:
        self.request = request
        self.graph = request.graph
        self.title = FLAVOURS[request.flavour].title
        self.library: TensorRt = load_tensorrt(request.flavour)
        self.gpu: Gpu | None = find_gpu(TENSORRT) if request.flavour == TENSORRT else None  # before the Builder
        if request.hardware_compatibility and self.gpu is not None and not self.gpu.compatible:
            raise InputError(
                f"--hardware-compatibility: {self.gpu.name} is older than Ampere and does not support it; omit it"
            )
        self.log = log_of(request.flavour)
        self.notes: list[str] = []
        self.builder = self.library.Builder(self.log)

    def parse(self) -> None:
        """Parse the graph into a TensorRT network.

        Raises:
            GateError: which names the rejected node, and the reason.
        """
        flags = self.library.NetworkDefinitionCreationFlag
        network = self.builder.create_network(1 << int(flags.STRONGLY_TYPED))  # the number differs between versions
        parser = self.library.OnnxParser(network, self.log)
        if not parser.parse_from_file(str(self.graph)):
            raise GateError(f"{self.title} {self.library.__version__} {self._refusal(parser)}")
        shape = tuple(network.get_input(0).shape) if network.num_inputs == 1 else ()
        if len(shape) != 4 or network.get_input(0).name != INPUT_NAME or shape[0] != -1 or min(shape[1:]) < 1:
            raise GateError(f"not a graph that `lipsformer export` wrote ({INPUT_NAME} of a dynamic batch in)")
        self.network = network

    def build(self) -> dict[str, Any]:
        """Build and write the engine of the parsed network.

        Returns:
            What the manifest says of it.

        Raises:
            GateError: if it cannot be built; the message says so if memory is short.
        """
        engine = self._build()
        if self.request.output is not None:
            with atomic_write(self.request.output) as draft:
                draft.write_bytes(engine)
        return self._facts()

    def take_notes(self) -> list[str]:
        """What the user should know, also where the build fails."""
        return self.notes

    def _build(self) -> bytes:
        request, library, network = self.request, self.library, self.network
        config = self.builder.create_builder_config()
        config.clear_flag(library.BuilderFlag.TF32)
        if request.flavour == RTX:  # otherwise the engine may allocate while it runs, which no CUDA graph can capture
            config.set_flag(library.BuilderFlag.REQUIRE_USER_ALLOCATION)
        image = tuple(network.get_input(0).shape)[1:]
        profile = self.builder.create_optimization_profile()
        largest = (request.max_batch, *image)
        profile.set_shape(INPUT_NAME, (1, *image), largest, largest)
        config.add_optimization_profile(profile)
        if request.workspace is not None:
            config.set_memory_pool_limit(library.MemoryPoolType.WORKSPACE, request.workspace)
        if self.gpu is not None and request.hardware_compatibility:
            config.hardware_compatibility_level = library.HardwareCompatibilityLevel.AMPERE_PLUS
        cache = None if self.gpu is None else self._timing_cache(self.gpu)  # RTX times nothing when it builds
        if cache is not None:
            self._load_timings(config, cache)
        self.log.take()
        engine = self.builder.build_serialized_network(network, config)
        if engine is None:
            raise GateError(f"{self.title} {library.__version__} {self._failed(self.log.take())}")
        if cache is not None:
            self._save_timings(config, cache)
        return bytes(engine)

    def _facts(self) -> dict[str, Any]:
        gpu, request = self.gpu, self.request
        return {
            "flavour": request.flavour,
            "version": self.library.__version__,
            "platform": PLATFORM,
            "gpu": None if gpu is None else gpu.name,
            "compute_capability": None if gpu is None else gpu.compute_capability,
            "cuda": None if gpu is None else gpu.cuda,
            "hardware_compatibility": gpu is None or request.hardware_compatibility,
            "min_batch": 1,
            "opt_batch": request.max_batch,
            "max_batch": request.max_batch,
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
            return f"lacks memory to build it: {why}; raise --workspace, or free GPU memory"
        return f"cannot build it: {why}"

    def _timing_cache(self, gpu: Gpu) -> Path:
        if self.request.timing_cache is not None:
            return self.request.timing_cache
        name = f"timings-{self.library.__version__}-{gpu.name.replace(' ', '-')}.cache"
        return cache_folder() / "tensorrt" / name

    def _load_timings(self, config: trt.IBuilderConfig, path: Path) -> None:
        self.log.take()
        cache = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
        complaint = any("timing cache" in message.lower() for message in self.log.take())
        if cache is None or complaint or not config.set_timing_cache(cache, False):
            self.notes.append(f"{path}: not a timing cache of this TensorRT and GPU; measuring again")
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
    """The precision of a graph, by its weights and operators: fp32, fp16 or int8."""
    if any(node.op_type == "QuantizeLinear" for node in graph.graph.node):
        return "int8"
    half = any(weight.data_type == TensorProto.FLOAT16 for weight in graph.graph.initializer)
    return "fp16" if half else "fp32"
