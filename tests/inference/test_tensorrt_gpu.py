"""What only a GPU can show: every runtime on it answers as the checkpoint does. `pytest -m gpu` runs these alone.

They have not run yet, since no machine of ours has a GPU: whoever has one proves the GPU side with that command.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from lipsformer import Preprocessing, load_checkpoint, save_checkpoint
from lipsformer.bundle.manifest import PRECISIONS, BundleFile
from lipsformer.export.graph import build_graph
from lipsformer.export.int8.quantize import quantize
from lipsformer.export.parity.thresholds import THRESHOLDS
from lipsformer.export.tensorrt.build import build_engine
from lipsformer.images.open import open_image
from lipsformer.images.samples import SAMPLES
from lipsformer.inference.runtimes import CUDA, OnnxRuntime, Pixels, TorchRuntime
from lipsformer.inference.runtimes.tensorrt import TensorRtRuntime
from lipsformer.inference.runtimes.tensorrt_compat import engine_fits
from lipsformer.model.factory import build_model
from lipsformer.system.errors import GateError
from tests.support.models.small_models import CSWIN, PLAIN_CSWIN, PLAIN_SWIN, SWIN

pytestmark = pytest.mark.gpu

MAX_BATCH = 6
# The worst image's relative L2 error of the logits: what the gate demands of a bundle.
LIMITS = {precision: limits["relative_l2"] for precision, limits in THRESHOLDS.items()}


@pytest.fixture(scope="module", params=["lipsformer-swin", "lipsformer-cswin", "swin", "cswin"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    config = {"lipsformer-swin": SWIN, "lipsformer-cswin": CSWIN, "swin": PLAIN_SWIN, "cswin": PLAIN_CSWIN}
    torch.manual_seed(0)
    model = build_model(config[request.param])
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_checkpoint(
        path,
        config=model.config,
        weights=model.state_dict(),
        classes=tuple("abcde"),
        preprocessing=Preprocessing(image_size=model.config.image_size),
        metrics={},
    )
    return load_checkpoint(path)


@pytest.fixture(scope="module")
def pixels(checkpoint: Any) -> Pixels:
    return np.stack([checkpoint.preprocessing.apply(open_image(path)) for path in sorted(SAMPLES.glob("*.jpg"))])


@pytest.fixture(scope="module")
def wanted(checkpoint: Any, pixels: Pixels) -> Any:
    torch_runtime = TorchRuntime(checkpoint, "cpu")
    return np.concatenate([torch_runtime.infer(pixels[i : i + 1]).logits for i in range(len(pixels))])


@pytest.fixture(scope="module", params=[name for name in PRECISIONS if name != "bf16"])
def graph(
    request: pytest.FixtureRequest, checkpoint: Any, pixels: Pixels, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    precision = request.param
    path = tmp_path_factory.mktemp("graph") / f"tensorrt-{precision}.onnx"
    made = build_graph(checkpoint, max_batch=MAX_BATCH, precision="fp16" if precision == "fp16" else "fp32")
    if precision == "int8":
        made = quantize(made, np.concatenate([pixels, pixels[:, :, ::-1]]), target="tensorrt")
    onnx.save(made, path)
    return path


@pytest.fixture(scope="module", params=["tensorrt", "tensorrt-rtx"])
def engine(request: pytest.FixtureRequest, graph: Path) -> tuple[Path, BundleFile]:
    pytest.importorskip(request.param.replace("-", "_"))
    path = graph.with_name(graph.name.replace("tensorrt-", f"{request.param}-")).with_suffix(".engine")
    built = build_engine(graph, path, max_batch=MAX_BATCH, flavour=request.param)
    if request.param == "tensorrt-rtx" and (misfit := engine_fits(built)) is not None:
        pytest.skip(misfit)  # data center GPUs
    facts = {"target": request.param, "precision": built["precision"], "parity": {}, "built": built}
    return path, BundleFile.describe(path, "engine", **facts)


@pytest.fixture(scope="module")
def runtime(engine: tuple[Path, BundleFile]) -> TensorRtRuntime:
    return TensorRtRuntime(*engine)


def error(found: Any, wanted: Any) -> float:
    return float((np.linalg.norm(found - wanted, axis=1) / np.linalg.norm(wanted, axis=1)).max())


def limit(engine: tuple[Path, BundleFile]) -> float:
    return LIMITS[engine[1].precision or ""]


@pytest.mark.parametrize("batch", [1, 3, MAX_BATCH])
def test_an_engine_answers_as_the_checkpoint_does(
    runtime: TensorRtRuntime, engine: tuple[Path, BundleFile], pixels: Pixels, wanted: Any, batch: int
) -> None:
    for _ in range(3):  # launched kernel by kernel, then as a CUDA graph
        found = np.concatenate([runtime.infer(pixels[i : i + batch]).logits for i in range(0, len(pixels), batch)])
        assert error(found, wanted) <= limit(engine)


def test_a_cuda_graph_gives_the_same_bits(runtime: TensorRtRuntime, pixels: Pixels) -> None:
    first = runtime.infer(pixels[:2]).logits
    assert 2 in runtime._graphs, "nothing was captured"
    np.testing.assert_array_equal(runtime.infer(pixels[:2]).logits, first)
    runtime.infer(pixels[2:4])
    np.testing.assert_array_equal(runtime.infer(pixels[:2]).logits, first)


def test_batch_sizes_in_any_order(
    runtime: TensorRtRuntime, engine: tuple[Path, BundleFile], pixels: Pixels, wanted: Any
) -> None:
    for batch in (5, 1, MAX_BATCH, 2, 1, 5, 4, MAX_BATCH, 3):
        assert error(runtime.infer(pixels[:batch]).logits, wanted[:batch]) <= limit(engine)


def test_beyond_the_graphs_answers_are_the_same(
    engine: tuple[Path, BundleFile], pixels: Pixels, wanted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lipsformer.inference.runtimes.tensorrt.MAX_GRAPHS", 1)
    fresh = TensorRtRuntime(*engine)
    for batch in (2, 3, 2, 1, 3):
        assert error(fresh.infer(pixels[:batch]).logits, wanted[:batch]) <= limit(engine)
    assert list(fresh._graphs) == [2]


def test_threads_get_their_own_answers(
    runtime: TensorRtRuntime, engine: tuple[Path, BundleFile], pixels: Pixels, wanted: Any
) -> None:
    worst: list[float] = []

    def ask(seed: int) -> None:
        for step in range(20):
            start, count = (seed + step) % 8, 1 + (seed * step) % MAX_BATCH
            worst.append(error(runtime.infer(pixels[start : start + count]).logits, wanted[start : start + count]))

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(worst) == 80
    assert max(worst) <= limit(engine)


def test_a_damaged_engine_is_refused_and_the_process_lives(engine: tuple[Path, BundleFile], tmp_path: Path) -> None:
    path, file = engine
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    (damaged := tmp_path / path.name).write_bytes(content)
    with pytest.raises(GateError, match="SHA-256 is not the manifest's"):
        TensorRtRuntime(damaged, file)


def test_pytorch_on_cuda_answers_as_on_the_cpu(checkpoint: Any, pixels: Pixels, wanted: Any) -> None:
    on_cuda = TorchRuntime(checkpoint, "cuda")
    for batch in (1, 3, MAX_BATCH):
        found = np.concatenate([on_cuda.infer(pixels[i : i + batch]).logits for i in range(0, len(pixels), batch)])
        assert error(found, wanted) <= LIMITS["fp32"]


def test_onnx_runtime_on_cuda_answers_as_the_checkpoint_does(graph: Path, pixels: Pixels, wanted: Any) -> None:
    import onnxruntime

    if CUDA not in onnxruntime.get_available_providers():
        pytest.skip("onnxruntime-gpu is not installed")
    on_cuda = OnnxRuntime(graph, device="cuda")
    assert on_cuda.provider == CUDA
    for batch in (1, 3, MAX_BATCH):
        found = np.concatenate([on_cuda.infer(pixels[i : i + batch]).logits for i in range(0, len(pixels), batch)])
        assert error(found, wanted) <= LIMITS[graph.stem.removeprefix("tensorrt-")]
