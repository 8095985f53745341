"""The parts of `measure.py`, each for a process of its own: `python benchmarks/gpu/parts.py NAME FOLDER [--dry-run]`.

A part writes what it found to FOLDER/NAME.json after every row, so that one that is stopped keeps its rows.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import importlib
import json
import os
import re
import runpy
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lipsformer.system.errors import InputError, LipsFormerError

ROOT = Path(__file__).resolve().parents[2]
CLASSES, RANKS, STEPS = 1000, 2, 10
CONFTEST_FAILED = 4  # pytest's exit status
PARITY = ("file", "runs on", "relative L2", "hard inputs", "same top-1", "neighbors", "result")
SPEED = ("model", "precision", "batch", "first call, ms", "p50, ms", "p99, ms", "images/s", "relative L2")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scale:
    """How large the parts are: `seconds` of each measurement of inference, `calls` of each of training."""

    device: str
    variant: str
    size: int
    settings: dict[str, Any]
    batches: tuple[int, ...]
    engines: tuple[str, ...]
    seconds: float
    training_batch: int
    rounds: int
    calls: int
    product: int
    compiler: str


GPU = Scale(
    device="cuda",
    variant="lipsformer_swin_tiny",
    size=224,
    settings={},
    batches=(1, 8, 64, 256),
    engines=("fp16", "fp32", "int8"),
    seconds=0.7,
    training_batch=128,
    rounds=7,
    calls=5,
    product=8192,
    compiler="inductor",
)
DRY_RUN = Scale(
    device="cpu",
    variant="lipsformer_swin_nano",
    size=32,
    settings={"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 4)},
    batches=(2,),
    engines=("fp16",),
    seconds=0.0,
    training_batch=4,
    rounds=1,
    calls=1,
    product=256,
    compiler="eager",
)


class SkippedError(Exception):
    """A part that cannot run here, and why."""


class Report:
    """What a part found, written to its file whenever that changes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[str, Any] = {"tables": [], "notes": [], "failures": [], "skipped": None}

    def row(self, title: str, columns: tuple[str, ...], *cells: object) -> None:
        """Add a row to the table of that title."""
        tables = {table["title"]: table for table in self.found["tables"]}
        if title not in tables:
            tables[title] = {"title": title, "columns": columns, "rows": []}
            self.found["tables"].append(tables[title])
        tables[title]["rows"].append(cells)
        self.save()

    def note(self, text: str) -> None:
        self.found["notes"].append(text)
        self.save()

    def fail(self, text: str) -> None:
        self.found["failures"].append(text)
        self.save()

    def skip(self, reason: str) -> None:
        self.found["skipped"] = reason
        self.save()

    def save(self) -> None:
        draft = self.path.with_suffix(".draft")
        draft.write_text(json.dumps(self.found), encoding="utf-8")
        draft.replace(self.path)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """The folder that the parts share, and the checkpoint, the reference and the graphs in it, each made once."""

    folder: Path
    scale: Scale

    @property
    def largest(self) -> int:
        return max(self.scale.batches)

    def network(self) -> Any:
        import torch

        import lipsformer

        torch.manual_seed(0)
        return lipsformer.create_model(self.scale.variant, CLASSES, self.scale.size, **self.scale.settings)

    def checkpoint(self) -> Any:
        """A checkpoint of random weights, loaded."""
        from lipsformer import Preprocessing, load_checkpoint, save_checkpoint

        path = self.folder / "model.safetensors"
        if not path.is_file():
            network = self.network()
            save_checkpoint(
                path,
                config=network.config,
                weights=network.state_dict(),
                classes=tuple(f"class {number}" for number in range(CLASSES)),
                preprocessing=Preprocessing(image_size=self.scale.size),
                metrics={},
            )
        return load_checkpoint(path)

    def reference(self) -> Any:
        """The sample photos and the hard inputs, with the checkpoint's outputs on the CPU."""
        from lipsformer.export.parity.gate_images import ImageSource
        from lipsformer.export.parity.reference import Reference
        from lipsformer.images.samples import SAMPLES
        from lipsformer.inference.runtimes import TorchRuntime

        path = self.folder / "reference.npz"
        if not path.is_file():
            checkpoint = self.checkpoint()
            images = ImageSource.find(SAMPLES, ()).gate_images(28, checkpoint.preprocessing)
            Reference.of(TorchRuntime(checkpoint), images).save(path)
        return Reference.load(path)

    def graph(self, target: str, precision: str) -> Path:
        """The graph for "ort" or "tensorrt" in a precision; float engines are built from those of ONNX Runtime."""
        import onnx

        from lipsformer.export.graph import build_graph
        from lipsformer.export.int8.quantize import quantize

        target = target if precision == "int8" else "ort"
        path = self.folder / f"{target}-{precision}.onnx"
        if not path.is_file():
            if precision == "int8":
                floating = onnx.load(self.graph("ort", "fp32"))
                graph = quantize(floating, self.reference().images.photos, target=target)
            else:
                graph = build_graph(self.checkpoint(), max_batch=self.largest, precision=precision)
            onnx.save(graph, path)
        return path


def environment(work: Work, report: Report) -> None:
    """The machine, the versions, and what `lipsformer doctor` says."""
    from lipsformer.system.hardware import cpu_name

    columns = ("what", "found")
    doctor = importlib.import_module("lipsformer.cli.doctor").examine()
    machine = "Machine"
    report.row(machine, columns, "CPU", f"{cpu_name()}, {doctor['cores']} cores")
    report.row(machine, columns, "Python", f"{doctor['python']} on {doctor['platform']}")
    for name, fact in gpu_facts():
        report.row(machine, columns, name, fact)
    report.row(machine, columns, "ONNX Runtime starts", ", ".join(doctor["onnxruntime_providers"]) or "nothing")
    for flavour, state in doctor["tensorrt"].items():
        report.row(machine, columns, flavour, state["use"])
    for name, version in doctor["packages"].items():
        report.row("Packages", ("package", "version"), name, version)
    for problem in doctor["problems"]:
        report.note(f"`lipsformer doctor`: {problem}")
    if work.scale.device == "cuda" and not any(device.startswith("cuda") for device in doctor["torch_devices"]):
        report.fail("PyTorch sees no GPU")


def gpu_facts() -> Iterator[tuple[str, object]]:
    """What PyTorch and the driver say of the GPUs."""
    import torch

    conv: Any = torch.backends.cudnn
    yield "PyTorch", f"{torch.__version__}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    yield (
        "float32 by default",
        f"matrix products {torch.backends.cuda.matmul.fp32_precision}, convolutions {conv.conv.fp32_precision}",
    )
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        capability = ".".join(map(str, torch.cuda.get_device_capability(index)))
        yield f"GPU {index}", f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, compute capability {capability}"
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        command = ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm,power.limit", "--format=csv,noheader"]
        asked = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
        yield "driver, largest clock, power limit", "; ".join(asked.stdout.split("\n")).strip("; ")
    if torch.cuda.is_available() and torch.distributed.is_nccl_available():
        yield "NCCL", ".".join(map(str, torch.cuda.nccl.version()))


def tests(work: Work, report: Report) -> None:
    """`pytest -m gpu`, of the files that have such tests."""
    status = run_tests(report)
    if status == CONFTEST_FAILED and work.scale.device == "cuda":  # these tests need none of its fixtures
        report.note("Without `tests/conftest.py`, which needs packages that are not installed here.")
        status = run_tests(report, "--noconftest", "-W", "ignore::pytest.PytestUnknownMarkWarning")
    if status not in (0, 1):
        report.fail(f"pytest ended with exit status {status}")


def run_tests(report: Report, *options: str) -> int:
    """Runs pytest, and counts outcomes line by line; returns its exit status."""
    files = [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text("utf-8")]
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-v", "-rs", "-o", "addopts=", "--import-mode=importlib"]
    counts = dict.fromkeys(("PASSED", "FAILED", "SKIPPED", "ERROR"), 0)
    reasons: list[str] = []
    command += ["-p", "no:cacheprovider", *options, *map(str, files)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        for line in process.stdout or ():
            print(line, end="")
            if found := re.match(r"(\S+::.+?) (PASSED|FAILED|SKIPPED|ERROR)\b", line):
                counts[found[2]] += 1
                report.found["tables"].clear()
                for outcome, count in counts.items():
                    report.row("`pytest -m gpu`", ("outcome", "tests"), outcome.lower(), count)
                if found[2] in ("FAILED", "ERROR"):
                    report.fail(found[1])
            elif line.startswith("SKIPPED "):
                reasons.append(line.removeprefix("SKIPPED ").strip())
                report.note(f"skipped: {reasons[-1]}")
    if reasons and sum(counts.values()) == counts["SKIPPED"]:
        report.skip(reasons[0])
    return process.returncode


def training(work: Work, report: Report, *, compiled: bool = False) -> None:
    """A training step in bfloat16, ours and timm's in turn, as a share of the peak of matrix products."""
    import torch

    from lipsformer.model.flops import count_multiply_adds

    peers = runpy.run_path(str(ROOT / "benchmarks" / "training" / "measure.py"), run_name="peers")
    scale, device = work.scale, torch.device(work.scale.device)
    network = work.network()
    multiply_adds = {peers["OURS"]: count_multiply_adds(network.config)}
    models = {peers["OURS"]: network}
    if scale.device == "cuda" and (timm := peers["import_timm"]()) is not None:
        models[peers["TIMM"]] = timm.swin_tiny_patch4_window7_224(num_classes=CLASSES)
    peak = peers["peak"](torch.bfloat16, device, scale.product)
    report.note(f"A product of two {scale.product} x {scale.product} matrices in bfloat16: {peak / 1e12:.3g} TFLOP/s.")
    images = torch.randn(scale.training_batch, 3, scale.size, scale.size, device=device)
    steps, first = {}, {}
    for name, model in models.items():
        ready = model.to(device)
        ready = torch.compile(ready, backend=scale.compiler) if compiled else ready
        steps[name] = peers["training_step"](ready, images, bfloat16=True)
        first[name] = peers["seconds"](steps[name], device)
    title = f"{scale.variant} at {scale.size} pixels, batch {scale.training_batch}, bfloat16 autocast"
    columns = ("model", "first step, s", "step, ms", "images/s", "TFLOP/s", "of the peak", "time / ours")
    times = peers["measure"](steps, device, scale.rounds, scale.calls)
    for name, values in times.items():
        seconds = statistics.median(values)
        ratio = statistics.median(theirs / ours for theirs, ours in zip(values, times[peers["OURS"]], strict=True))
        rate = peers["STEP"] * 2 * multiply_adds[name] * len(images) / seconds if name in multiply_adds else None
        share = (None, None) if rate is None else (rate / 1e12, f"{rate / peak:.1%}")
        report.row(title, columns, name, first[name], seconds * 1e3, len(images) / seconds, *share, ratio)


def compiled_training(work: Work, report: Report) -> None:
    """`training`, compiled."""
    training(work, report, compiled=True)


def export(work: Work, report: Report) -> None:
    """The graphs that the parts after this one run, and the reference for their parity."""
    work.reference()
    for target, precision in (("ort", "fp32"), ("ort", "fp16"), ("ort", "int8"), ("tensorrt", "int8")):
        started = time.perf_counter()
        path = work.graph(target, precision)
        size = path.stat().st_size / 1e6
        report.row("Graphs, exported on the CPU", ("file", "MB", "s"), path.name, size, time.perf_counter() - started)


def cuda(work: Work, report: Report) -> None:
    """Every graph in ONNX Runtime's CUDA provider: parity, which nodes stay on the CPU, and speed."""
    from lipsformer.inference.runtimes import CUDA, OnnxRuntime, import_onnxruntime

    if work.scale.device == "cuda" and CUDA not in import_onnxruntime().get_available_providers():
        raise SkippedError("this ONNX Runtime has no CUDA provider; pip install 'lipsformer[gpu]'")
    for precision in ("fp32", "fp16", "int8"):
        path = work.graph("ort", precision)
        runtime = OnnxRuntime(path, work.scale.device)
        check(work, report, runtime, path, "ort", precision)
        report.note(f"{path.name}: nodes by provider: {placement(path, work.scale.device)}")
        speed(work, report, "ONNX Runtime", precision, lambda pixels, runtime=runtime: runtime.infer(pixels).logits)


def placement(graph: Path, device: str) -> str:
    """How many nodes each provider runs, by ONNX Runtime's profile, and of what type those on the CPU are.

    A session whose first provider is CUDA may run any of its nodes on the CPU, and copy to and fro.
    """
    import onnxruntime as ort

    from lipsformer.inference.runtimes import INPUT_NAME
    from lipsformer.inference.runtimes.onnxruntime import CUDA, CUDA_OPTIONS

    options = ort.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(graph.with_suffix(".profile"))
    providers: list[Any] = [(CUDA, CUDA_OPTIONS)] if device == "cuda" else []
    session = ort.InferenceSession(graph, options, [*providers, "CPUExecutionProvider"])
    size = session.get_inputs()[0].shape[1]
    session.run(None, {INPUT_NAME: np.zeros((1, size, size, 3), np.uint8)})
    events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    nodes = {event["name"]: event["args"] for event in events if event.get("args", {}).get("provider")}
    counts: dict[str, int] = {}
    for node in nodes.values():
        counts[node["provider"]] = counts.get(node["provider"], 0) + 1
    here = sorted({node["op_name"] for node in nodes.values() if node["provider"] == "CPUExecutionProvider"})
    on_cpu = f" ({', '.join(here)} on the CPU)" if device == "cuda" and here else ""
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) + on_cpu


def tensorrt(work: Work, report: Report, flavour: str = "tensorrt") -> None:
    """An engine for each precision, built as the export builds it: parity gate and speed, if it runs here."""
    from lipsformer.inference.runtimes.tensorrt_library import TENSORRT, find_gpu, load_tensorrt

    try:
        load_tensorrt(flavour)
        if flavour == TENSORRT:
            find_gpu(flavour)
    except InputError as missing:
        raise SkippedError(str(missing)) from None
    for precision in work.scale.engines:
        try:
            engine(work, report, flavour, precision)
        except LipsFormerError as error:
            report.fail(f"{precision}: {error}")


def tensorrt_rtx(work: Work, report: Report) -> None:
    """`tensorrt`, for the other library, which also builds without a GPU."""
    tensorrt(work, report, "tensorrt-rtx")


def engine(work: Work, report: Report, flavour: str, precision: str) -> None:
    from lipsformer.bundle.manifest import BundleFile
    from lipsformer.export.tensorrt.build import build_engine
    from lipsformer.inference.runtimes.tensorrt import TensorRtRuntime
    from lipsformer.inference.runtimes.tensorrt_compat import engine_fits

    path = work.folder / f"{flavour}-{precision}.engine"
    started = time.perf_counter()
    built = build_engine(work.graph("tensorrt", precision), path, max_batch=work.largest, flavour=flavour)
    misfit = engine_fits(built)
    size, seconds = path.stat().st_size / 1e6, time.perf_counter() - started
    report.row("Engines", ("engine", "MB", "build, s", "runs here"), path.name, size, seconds, misfit or "yes")
    if misfit is not None:
        return
    file = BundleFile.describe(path, "engine", target=flavour, precision=precision, parity={}, built=built)
    runtime = TensorRtRuntime(path, file)
    check(work, report, runtime, path, flavour, precision)
    speed(work, report, runtime.provider, precision, lambda pixels: runtime.infer(pixels).logits)
    report.note(f"{path.name}: CUDA graphs of the batch sizes {sorted(runtime._graphs) or 'none'}")


def pytorch(work: Work, report: Report) -> None:
    """The checkpoint in PyTorch: in float32, under bfloat16 autocast, and that compiled."""
    import torch

    from lipsformer.inference.runtimes import TorchRuntime

    runtime = TorchRuntime(work.checkpoint(), work.scale.device)
    compiled = torch.compile(runtime.model, backend=work.scale.compiler)
    ways = (
        ("PyTorch", runtime.model, torch.float32),
        ("PyTorch", runtime.model, torch.bfloat16),
        ("PyTorch, torch.compile", compiled, torch.bfloat16),
    )
    for name, model, dtype in ways:

        def infer(pixels: Any, model: Any = model, dtype: Any = dtype) -> Any:
            half = torch.autocast(runtime.device.type, dtype, enabled=dtype != torch.float32)
            with torch.inference_mode(), half:
                logits = model(runtime.normalize(torch.tensor(pixels, device=runtime.device)))
                return logits.float().cpu().numpy()

        speed(work, report, name, str(dtype).removeprefix("torch."), infer)


def check(work: Work, report: Report, runtime: Any, path: Path, target: str, precision: str) -> None:
    """The parity check of an export, with its limits but that of top-1: with random weights, rounding may decide it."""
    from lipsformer.export.parity.check import check_parity
    from lipsformer.export.parity.thresholds import THRESHOLDS

    found = check_parity(
        runtime,
        work.reference(),
        file=path.name,
        target=target,
        precision=precision,
        max_batch=work.largest,
        limits={name: limit for name, limit in THRESHOLDS[precision].items() if name != "top1_agreement"},
    )
    numbers = [found.worst(name) for name in ("relative_l2", "hard_relative_l2", "top1_agreement")]
    result = "passed" if found.passed else "; ".join(found.failures)
    report.row("Parity", PARITY, path.name, found.provider, *numbers, found.invariance.neighbors, result)
    if not found.passed:
        report.fail(f"{path.name}: {result}")


def speed(work: Work, report: Report, name: str, precision: str, infer: Callable[[Any], Any]) -> None:
    """Milliseconds of a call at each batch size, from pixels in memory to logits in memory."""
    from lipsformer.evaluation.speed.worker import time_calls
    from lipsformer.export.parity.metrics import relative_l2

    reference = work.reference()
    photos, wanted = reference.images.photos, reference.photos.logits
    for batch in work.scale.batches:
        which = np.arange(batch) % len(photos)
        pixels = photos[which]
        started = time.perf_counter()
        error = float(relative_l2(wanted[which], infer(pixels)).max())
        first = time.perf_counter() - started
        p50, p99 = np.percentile(time_calls(infer, pixels, work.scale.seconds), (50, 99))
        times = (first * 1e3, p50 * 1e3, p99 * 1e3, batch / p50)
        report.row("Speed", SPEED, name, precision, batch, *map(float, times), error)


def processes(work: Work, report: Report) -> None:
    """Ten steps of two processes, by NCCL on two GPUs: both end with the same weights."""
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # so that counting the GPUs leaves them alone before the fork
    import torch
    from torch.multiprocessing import start_processes

    import lipsformer.train.distributed  # noqa: F401 - once, for both processes

    if work.scale.device == "cuda" and (count := torch.cuda.device_count()) < RANKS:
        raise SkippedError(f"it needs two GPUs, and this machine has {count}")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ.update(WORLD_SIZE=str(RANKS), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    start_processes(rank, (work,), RANKS, start_method="fork")
    found = [json.loads((work.folder / f"rank{number}.json").read_text(encoding="utf-8")) for number in range(RANKS)]
    for facts in found:
        report.row("Ten steps", tuple(facts), *facts.values())
    if len({facts["weights"] for facts in found}) > 1:
        report.fail("the processes ended with different weights")


def rank(number: int, work: Work) -> None:
    """One of the processes of `processes`."""
    import torch
    import torch.distributed as dist

    from lipsformer.train.distributed import init_distributed

    os.environ.update(RANK=str(number), LOCAL_RANK=str(number))
    peers = runpy.run_path(str(ROOT / "benchmarks" / "training" / "measure.py"), run_name="peers")
    scale = work.scale
    with init_distributed(scale.device) as distributed:
        network = work.network()
        torch.manual_seed(number)  # different images
        for parameter in network.parameters():  # and weights, which the first process replaces
            parameter.data += number
        images = torch.randn(scale.training_batch, 3, scale.size, scale.size).to(distributed.device)
        wrapped = distributed.wrap(network.to(distributed.device))
        step = peers["training_step"](wrapped, images, bfloat16=scale.device == "cuda")
        step()
        started = time.perf_counter()
        losses = [float(step()) for _ in range(STEPS - 1)]
        seconds = (time.perf_counter() - started) / (STEPS - 1)
        weights = hashlib.sha256()
        for value in network.state_dict().values():
            weights.update(value.cpu().numpy().tobytes())
        facts = {
            "process": f"{number} of {distributed.world_size}, {dist.get_backend()} on {distributed.device}",
            "step, ms": seconds * 1e3,
            "last loss": losses[-1],
            "weights": weights.hexdigest()[:16],
        }
        (work.folder / f"rank{number}.json").write_text(json.dumps(facts), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dry-run", action="store_true")
    arguments = parser.parse_args()
    report = Report(arguments.folder / f"{arguments.name}.json")
    try:
        part = globals()[arguments.name.replace("-", "_")]
        part(Work(folder=arguments.folder, scale=DRY_RUN if arguments.dry_run else GPU), report)
    except SkippedError as reason:
        report.skip(str(reason))
    except ModuleNotFoundError as missing:
        if (missing.name or "").partition(".")[0] in ("", "lipsformer", "tests"):
            raise
        report.skip(f"{missing.name} is not installed")


if __name__ == "__main__":
    main()
