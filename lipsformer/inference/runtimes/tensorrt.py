"""An engine run by TensorRT on the GPU, in PyTorch's memory, with a CUDA graph for each batch size.

None of this has run on a GPU yet: the tests run it against a stand-in for TensorRT. See docs/tensorrt.md.
"""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lipsformer.bundle.manifest import BundleFile
from lipsformer.system.console import say
from lipsformer.system.errors import GateError, InputError, LipsFormerError

from .base import FEATURES_NAME, INPUT_NAME, LOGITS_NAME, Outputs, Pixels
from .tensorrt_compat import engine_fits, rebuild
from .tensorrt_library import FLAVOURS, RTX, find_gpu, load_tensorrt, log_of, reason

if TYPE_CHECKING:
    import tensorrt as trt
    import torch

__all__ = ["MAX_GRAPHS", "TensorRtRuntime"]

MAX_GRAPHS = 16  # each keeps an execution context; further batch sizes run without a graph


class TensorRtRuntime:
    """Runs an engine on the first visible GPU; calls from several threads run one at a time.

    Args:
        engine: the .engine file.
        file: its entry in the bundle's manifest.

    Raises:
        InputError: if TensorRT or the GPU is missing, or the engine was built for another version or GPU.
        GateError: if the file's hash differs from the manifest; then none of it is loaded.
    """

    def __init__(self, engine: Path, file: BundleFile) -> None:
        if (misfit := engine_fits(file.built or {})) is not None:
            raise InputError(f"{engine}: {misfit}")
        self.path = engine
        self.flavour = str((file.built or {})["flavour"])
        self._library = load_tensorrt(self.flavour)
        self._log = log_of(self.flavour)
        self._runtime, self._engine = self._deserialize(file.sha256)
        self.max_batch, self.image_size, self._widths = self._dimensions()
        self.outputs, self.channels = self._widths[LOGITS_NAME], self._widths.get(FEATURES_NAME)
        title = FLAVOURS[self.flavour].title
        self.provider = f"{title} {self._library.__version__} on {find_gpu(self.flavour).name}"
        self._lock = threading.Lock()
        self._allocate(_device())
        self._any_batch = self._context()
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, trt.IExecutionContext]] = {}
        self._capturing = True

    def infer(self, pixels: Pixels) -> Outputs:
        """Logits (N, K) and features (N, C) of pixels (N, S, S, 3).

        Raises:
            InputError: if the pixels have the wrong shape or type, or the batch is too large for the engine.
            LipsFormerError: if TensorRT fails to run them.
        """
        import torch

        size, count = self.image_size, len(pixels)
        if pixels.dtype != np.uint8 or pixels.shape[1:] != (size, size, 3) or not 1 <= count <= self.max_batch:
            raise InputError(
                f"{self.path}: takes 1 to {self.max_batch} uint8 images of {size}x{size}x3, "
                f"not {pixels.dtype} of shape {pixels.shape}; a larger batch needs export --max-batch"
            )
        with self._lock, torch.cuda.stream(self._stream):
            self._host_input.numpy()[:count] = pixels
            self._input[:count].copy_(self._host_input[:count], non_blocking=True)
            self._run(count)
            for name, output in self._outputs.items():
                self._host_outputs[name][:count].copy_(output[:count], non_blocking=True)
            self._stream.synchronize()
            found = {name: output[:count].numpy().copy() for name, output in self._host_outputs.items()}
        return Outputs(found[LOGITS_NAME], found.get(FEATURES_NAME))

    def _deserialize(self, sha256: str) -> tuple[trt.Runtime, trt.ICudaEngine]:
        # Load the very bytes whose hash was checked: the file may change in between.
        try:
            content = self.path.read_bytes()
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read ({error.strerror})") from None
        if hashlib.sha256(content).hexdigest() != sha256:
            raise GateError(f"{self.path}: its SHA-256 is not the manifest's: damaged or changed; export it again")
        runtime = self._library.Runtime(self._log)
        self._log.take()
        engine = runtime.deserialize_cuda_engine(content)
        if engine is None:
            raise InputError(
                f"{self.path}: {FLAVOURS[self.flavour].title} cannot load it ({reason(self._log.take())}); "
                f"{rebuild(self.flavour)}"
            )
        return runtime, engine

    def _dimensions(self) -> tuple[int, int, dict[str, int]]:
        """The largest batch, the image size and the width of each output, after a check of the tensors."""
        engine, library = self._engine, self._library
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        found = {
            name: (engine.get_tensor_mode(name), engine.get_tensor_dtype(name), len(engine.get_tensor_shape(name)))
            for name in names
        }
        output = (library.TensorIOMode.OUTPUT, library.DataType.FLOAT, 2)
        wanted = {INPUT_NAME: (library.TensorIOMode.INPUT, library.DataType.UINT8, 4), LOGITS_NAME: output}
        if found not in (wanted, {**wanted, FEATURES_NAME: output}):
            raise InputError(f"{self.path}: not an engine of `lipsformer export` (uint8 pixels in, float logits out)")
        _, _, largest = engine.get_tensor_profile_shape(INPUT_NAME, 0)
        widths = {name: engine.get_tensor_shape(name)[1] for name in (LOGITS_NAME, FEATURES_NAME) if name in found}
        return largest[0], engine.get_tensor_shape(INPUT_NAME)[1], widths

    def _allocate(self, device: torch.device) -> None:
        """Allocate memory for the largest batch on both sides, and the scratch memory that all contexts share."""
        import torch

        shape = (self.max_batch, self.image_size, self.image_size, 3)
        pinned = device.type == "cuda"
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._input = torch.empty(shape, dtype=torch.uint8, device=device)
        self._host_input = torch.empty(shape, dtype=torch.uint8, pin_memory=pinned)
        self._outputs, self._host_outputs = (
            {
                name: torch.empty((self.max_batch, width), dtype=torch.float32, **where)
                for name, width in self._widths.items()
            }
            for where in ({"device": device}, {"pin_memory": pinned})
        )
        self._scratch = torch.empty(max(1, self._engine.device_memory_size_v2), dtype=torch.uint8, device=device)

    def _context(self) -> trt.IExecutionContext:
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(self._library.ExecutionContextAllocationStrategy.USER_MANAGED)
        if self.flavour == RTX:  # otherwise a CUDA graph would keep the slow kernels that run until fast ones exist
            strategies = self._library.DynamicShapesKernelSpecializationStrategy
            config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
        context = self._engine.create_execution_context(config)
        if context is None:
            raise self._failure("cannot make an execution context")
        context.set_device_memory(self._scratch.data_ptr(), self._scratch.numel())
        for name, tensor in ((INPUT_NAME, self._input), *self._outputs.items()):
            if not context.set_tensor_address(name, tensor.data_ptr()):
                raise self._failure(f"refuses the memory of '{name}'")
        return context

    def _run(self, count: int) -> None:
        if count in self._graphs:
            self._graphs[count][0].replay()
        elif self._capturing and len(self._graphs) < MAX_GRAPHS:
            # A separate context: a graph is undefined once the context that it was captured from changes its shape.
            context = self._context()
            self._enqueue(context, count)  # the result; and TensorRT needs one run before a capture
            self._capture(context, count)
        else:
            self._enqueue(self._any_batch, count)

    def _enqueue(self, context: trt.IExecutionContext, count: int) -> None:
        if not context.set_input_shape(INPUT_NAME, (count, self.image_size, self.image_size, 3)):
            raise self._failure(f"refuses a batch of {count}")
        self._execute(context)

    def _execute(self, context: trt.IExecutionContext) -> None:
        if not context.execute_async_v3(self._stream.cuda_stream):
            raise self._failure("failed to run")

    def _capture(self, context: trt.IExecutionContext, count: int) -> None:
        import torch

        graph = torch.cuda.CUDAGraph()
        try:
            # thread_local: other threads may allocate meanwhile
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                self._execute(context)
        except (RuntimeError, LipsFormerError) as error:
            self._capturing = False
            say(
                f"{self.path.name}: no CUDA graphs, each batch is launched kernel by kernel ({reason([str(error)])})",
                always=True,
            )
            return
        self._graphs[count] = (graph, context)

    def _failure(self, what: str) -> LipsFormerError:
        return LipsFormerError(f"{self.path}: {FLAVOURS[self.flavour].title} {what} ({reason(self._log.take())})")


def _device() -> torch.device:
    import torch

    return torch.device("cuda", 0)
