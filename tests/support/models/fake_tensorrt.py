"""A stand-in for the module `tensorrt`, and for the GPU, so that the order of our calls can be seen without either.

An engine of it is JSON; it answers pixels with their mean plus the number of the class. BEHAVIOR makes it fail: a test
sets it here, or for another process in the environment variable FAKE_TENSORRT.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import json
import os
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

__version__ = "11.4.0.106"

BEHAVIOR: dict[str, Any] = json.loads(os.environ.get("FAKE_TENSORRT", "{}"))
CALLS: list[str] = []
CAPTURE: list[Callable[[], None]] | None = None  # what goes into a CUDA graph while one is captured


class DataType(enum.Enum):
    FLOAT, UINT8 = range(2)


class TensorIOMode(enum.Enum):
    INPUT, OUTPUT = range(2)


class NetworkDefinitionCreationFlag(enum.IntEnum):
    EXPLICIT_BATCH, STRONGLY_TYPED = range(2)  # as in TensorRT 10; in 11 the first is gone


class BuilderFlag(enum.Enum):
    TF32, REQUIRE_USER_ALLOCATION = range(2)


class MemoryPoolType(enum.Enum):
    WORKSPACE = 0


class HardwareCompatibilityLevel(enum.Enum):
    NONE, AMPERE_PLUS = range(2)


class ExecutionContextAllocationStrategy(enum.Enum):
    STATIC, USER_MANAGED = range(2)


class ComputeCapability(enum.Enum):
    CURRENT, SM80, SM89, SM120 = range(4)


class DynamicShapesKernelSpecializationStrategy(enum.Enum):
    LAZY, EAGER = range(2)


class ILogger:
    class Severity(enum.IntEnum):
        INTERNAL_ERROR, ERROR, WARNING, INFO = range(4)

    def error(self, message: str) -> None:
        self.log(ILogger.Severity.ERROR, message)


class Network:
    num_inputs = 1

    def get_input(self, index: int) -> Any:
        return types.SimpleNamespace(name=self.name, shape=self.shape)


class OnnxParser:
    def __init__(self, network: Network, logger: ILogger) -> None:
        self.network = network

    def parse_from_file(self, path: str) -> bool:
        import onnx

        CALLS.append("parse")
        if "parse" in BEHAVIOR:
            return False
        value = onnx.load(path).graph.input[0]
        self.network.name = value.name
        self.network.shape = tuple(d.dim_value or -1 for d in value.type.tensor_type.shape.dim)
        return True

    num_errors = 1

    def get_error(self, index: int) -> Any:
        return types.SimpleNamespace(
            desc=lambda: f"Invalid Node - gelu_7\n{BEHAVIOR['parse']}",
            node_name=lambda: "gelu_7",
            node_operator=lambda: "Gelu",
        )


class TimingCache:
    def __init__(self, content: bytes) -> None:
        self.content = content

    def serialize(self) -> bytes:
        return b"timings" + self.content.removeprefix(b"timings")


class BuilderConfig:
    def __init__(self) -> None:
        self.said: dict[str, Any] = {"flags": ["TF32"], "hardware": "NONE", "workspace": None}

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "hardware_compatibility_level":
            self.said["hardware"] = value.name
        super().__setattr__(name, value)

    def add_optimization_profile(self, profile: Any) -> int:
        self.said["profile"] = profile.shapes
        return 0

    def clear_flag(self, flag: BuilderFlag) -> None:
        self.said["flags"].remove(flag.name)

    def set_flag(self, flag: BuilderFlag) -> None:
        self.said["flags"].append(flag.name)

    def set_memory_pool_limit(self, pool: MemoryPoolType, size: int) -> None:
        self.said["workspace"] = size

    def create_timing_cache(self, content: bytes) -> TimingCache | None:
        return TimingCache(content) if content in (b"", b"timings", b"others") else None

    def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
        self.cache = cache
        self.said["timings"] = cache.content.decode()
        return cache.content != b"others"

    def get_timing_cache(self) -> TimingCache:
        return self.cache


class Builder:
    def __init__(self, logger: ILogger) -> None:
        CALLS.append("Builder")
        if "abort" in BEHAVIOR:
            os.abort()
        self.logger = logger

    def create_network(self, flags: int) -> Network:
        assert flags == 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED
        return Network()

    def create_builder_config(self) -> BuilderConfig:
        return BuilderConfig()

    def create_optimization_profile(self) -> Any:
        profile = types.SimpleNamespace()
        profile.set_shape = lambda *shapes: setattr(profile, "shapes", shapes)
        return profile

    def build_serialized_network(self, network: Network, config: BuilderConfig) -> bytes | None:
        CALLS.append("build")
        if "build" in BEHAVIOR:
            self.logger.error(BEHAVIOR["build"])
            return None
        largest = config.said["profile"][-1]
        return json.dumps({"max_batch": largest[0], "size": largest[1], "outputs": 5, **config.said}).encode()


class Engine:
    device_memory_size_v2 = 1000

    def __init__(self, facts: dict[str, Any]) -> None:
        self.facts = facts
        image = (facts["size"], facts["size"], 3)
        self.tensors = {
            facts.get("input", "pixels"): (TensorIOMode.INPUT, DataType.UINT8, (-1, *image)),
            "logits": (TensorIOMode.OUTPUT, DataType.FLOAT, (-1, facts["outputs"])),
        }
        if "channels" in facts:
            self.tensors["features"] = (TensorIOMode.OUTPUT, DataType.FLOAT, (-1, facts["channels"]))
        self.num_io_tensors = len(self.tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return self.tensors[name][0]

    def get_tensor_dtype(self, name: str) -> DataType:
        return self.tensors[name][1]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name][2]

    def get_tensor_profile_shape(self, name: str, index: int) -> list[tuple[int, ...]]:
        image = self.get_tensor_shape(name)[1:]
        return [(batch, *image) for batch in (1, 1, self.facts["max_batch"])]

    def create_runtime_config(self) -> Any:
        config = types.SimpleNamespace(strategy=None, dynamic_shapes_kernel_specialization_strategy=None)
        config.set_execution_context_allocation_strategy = lambda strategy: setattr(config, "strategy", strategy)
        return config

    def create_execution_context(self, config: Any) -> Context:
        assert config.strategy is ExecutionContextAllocationStrategy.USER_MANAGED
        specialized = config.dynamic_shapes_kernel_specialization_strategy
        CALLS.append("context" if specialized is None else f"context {specialized.name}")
        return Context(self.facts)


class Context:
    def __init__(self, facts: dict[str, Any]) -> None:
        self.facts = facts
        self.addresses: dict[str, int] = {}
        self.memory = 0

    def set_device_memory(self, memory: int, size: int) -> None:
        assert size >= Engine.device_memory_size_v2
        self.memory = memory

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        CALLS.append(f"shape {shape[0]}")
        self.shape = shape
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.addresses[name] = memory
        return True

    def execute_async_v3(self, stream: int) -> bool:
        assert self.memory
        assert stream == Stream.cuda_stream
        if CAPTURE is not None:
            CALLS.append("captured")
            CAPTURE.append(self.compute)
            return "capture" not in BEHAVIOR
        CALLS.append("run")
        self.compute()
        return "run" not in BEHAVIOR

    def compute(self) -> None:
        count = self.shape[0]
        pixels = (ctypes.c_uint8 * int(np.prod(self.shape))).from_address(self.addresses["pixels"])
        means = np.frombuffer(pixels, np.uint8).reshape(count, -1).mean(axis=1, keepdims=True)
        for name, width, factor in (("logits", "outputs", 1), ("features", "channels", 2)):
            if width in self.facts:
                columns = self.facts[width]
                memory = (ctypes.c_float * (count * columns)).from_address(self.addresses[name])
                values = factor * (means + np.arange(columns))
                np.frombuffer(memory, np.float32).reshape(count, columns)[:] = values


class Runtime:
    def __init__(self, logger: ILogger) -> None:
        CALLS.append("Runtime")
        self.logger = logger

    def deserialize_cuda_engine(self, content: bytes) -> Engine | None:
        CALLS.append("deserialize")
        if "deserialize" in BEHAVIOR:
            self.logger.error(BEHAVIOR["deserialize"])
            return None
        return Engine(json.loads(content))


class Stream:
    cuda_stream = 77

    def synchronize(self) -> None:
        CALLS.append("wait")


class Graph:
    def __init__(self) -> None:
        self.operations: list[Callable[[], None]] = []

    def replay(self) -> None:
        CALLS.append("replay")
        for operation in self.operations:
            operation()


@contextlib.contextmanager
def capture(graph: Graph, *, stream: Stream, capture_error_mode: str) -> Iterator[None]:
    global CAPTURE
    CAPTURE = graph.operations
    try:
        yield
    finally:
        CAPTURE = None


def seen_gpu(name: str = "NVIDIA H100", major: int = 9, minor: int = 0) -> list[tuple[Any, str, Any]]:
    """What to set, where, and to what, so that PyTorch sees a GPU."""
    properties = types.SimpleNamespace(name=name, major=major, minor=minor)
    return [
        (torch.version, "cuda", "13.0"),
        (torch.cuda, "init", lambda: CALLS.append("probe")),
        (torch.cuda, "device_count", lambda: 1),
        (torch.cuda, "get_device_properties", lambda index: properties),
        (torch.cuda, "Stream", Stream),
        (torch.cuda, "stream", lambda stream: contextlib.nullcontext()),
        (torch.cuda, "CUDAGraph", Graph),
        (torch.cuda, "graph", capture),
    ]


if "gpu" in BEHAVIOR:  # in another process, where no monkeypatch reaches
    for change in seen_gpu():
        setattr(*change)
