"""`lipsformer doctor`: what this machine can run, and the commands that fix what it cannot."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Any

import typer

from .options import Json, print_json

__all__ = ["doctor", "examine", "render"]

PACKAGES = (
    "lipsformer",
    "torch",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt",
    "tensorrt-rtx",
    "bentoml",
    "pillow",
    "typer",
    "pyarrow",
)


def doctor(as_json: Json = False) -> None:
    """Check this machine: devices, execution providers, versions, conflicts, and what to install."""
    report = examine()
    if as_json:
        print_json(report)
    else:
        typer.echo(render(report))


def examine() -> dict[str, Any]:
    """Collects versions, devices, execution providers that start, and problems with the commands that fix them."""
    from lipsformer.inference.runtimes import CUDA
    from lipsformer.inference.runtimes.tensorrt_library import FLAVOURS
    from lipsformer.system.hardware import cores

    versions = {name: _version(name) for name in PACKAGES}
    problems: list[str] = []
    report: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": cores(),
        "packages": versions,
        "torch_devices": _torch_devices(),
        "onnxruntime_providers": [],
        "tensorrt": {flavour: _tensorrt(flavour) for flavour in FLAVOURS},
        "problems": problems,
    }
    cuda = any(device.startswith("cuda") for device in report["torch_devices"])
    if versions["tensorrt"] and report["tensorrt"]["tensorrt"]["problem"]:  # TensorRT for RTX is useful without a GPU
        problems.append(report["tensorrt"]["tensorrt"]["problem"])
    installed = [name for name in ("onnxruntime", "onnxruntime-gpu") if versions[name]]
    extra = f"'lipsformer[{'gpu' if cuda else 'cpu'}]'"
    if not installed:
        problems.append(f"no ONNX Runtime: pip install {extra}")
        return report
    if len(installed) == 2:
        problems.append(
            "onnxruntime and onnxruntime-gpu are both installed, and overwrite each other's files: "
            f"pip uninstall -y onnxruntime onnxruntime-gpu && pip install {extra}"
        )
    try:
        report["onnxruntime_providers"] = providers = _working_providers()
    except Exception as error:  # noqa: BLE001 - a broken installation may raise anything
        problems.append(
            f"ONNX Runtime does not start ({' '.join(str(error).split())[:200]}): "
            f"pip uninstall -y {' '.join(installed)} && pip install {extra}"
        )
        return report
    if "onnxruntime-gpu" in installed and CUDA not in providers:
        problems.append(
            "onnxruntime-gpu is installed but CUDA does not start: check that `nvidia-smi` works, then "
            "pip install 'lipsformer[gpu]'; on a machine without a GPU "
            "pip uninstall -y onnxruntime-gpu && pip install 'lipsformer[cpu]'"
        )
    elif cuda and CUDA not in providers:
        problems.append(
            "this ONNX Runtime cannot use the GPU that PyTorch sees: "
            "pip uninstall -y onnxruntime && pip install 'lipsformer[gpu]'"
        )
    return report


def render(report: dict[str, Any]) -> str:
    """Formats the report for a terminal."""
    versions = report["packages"]
    lines = [
        f"python       {report['python']} on {report['platform']}, {report['cores']} cores",
        f"torch runs   {', '.join(report['torch_devices'])}",
        f"onnxruntime  {', '.join(report['onnxruntime_providers']) or 'not usable'}",
        *(f"{flavour:12} {state['use']}" for flavour, state in report["tensorrt"].items()),
        "",
        *(f"{name:16} {version or '-'}" for name, version in versions.items()),
        "",
    ]
    lines += [f"! {problem}" for problem in report["problems"]] or ["No problems found."]
    return "\n".join(lines)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _tensorrt(flavour: str) -> dict[str, str | None]:
    """What TensorRT can do here, and what prevents it from running engines. TensorRT itself is not started."""
    from lipsformer.inference.runtimes.tensorrt_library import RTX, find_gpu, load_tensorrt
    from lipsformer.system.errors import InputError

    try:
        version = load_tensorrt(flavour).__version__
    except InputError as error:
        return {"use": str(error), "problem": str(error)}
    try:
        return {"use": f"{version} on {find_gpu(flavour).name}", "problem": None}
    except InputError as error:
        builds = "builds and checks graphs (--trt-check), runs no engines" if flavour == RTX else "not usable"
        return {"use": f"{version} {builds}: {error}", "problem": str(error)}


def _torch_devices() -> list[str]:
    import torch

    names = [f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    return [f"cpu ({torch.backends.cpu.get_cpu_capability()})", *names]


def _working_providers() -> list[str]:
    """Execution providers that start a session: a GPU wheel lists CUDA as available even without a GPU."""
    import onnx

    from lipsformer.inference.runtimes import open_session

    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    result = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "probe", [value], [result])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    providers: list[str] = open_session(model.SerializeToString(), cuda=True).get_providers()
    return providers
