"""`lipsformer doctor`: what this machine can run, and the commands that fix what it cannot."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import Any

import typer

from lipsformer.system.extras import EXTRAS, is_installed, missing_packages
from lipsformer.system.hardware import cores, installed_versions

from .needs import NEEDS, missing_command
from .options import Json, print_json

__all__ = ["doctor", "examine", "render"]

PACKAGES = (
    "lipsformer",
    "torch",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "tensorrt-rtx",
    "bentoml",
    "pillow",
    "pillow-heif",
    "pillow-jxl-plugin",
    "typer",
    "pyarrow",
)
# An ONNX model of one Identity node (float [1], opset 20, IR version 10), made by the package onnx, which is optional.
PROBE = (
    b'\x08\n:;\n\x10\n\x01x\x12\x01y"\x08Identity\x12\x05probeZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01'
    b"b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\x14"
)


def doctor(as_json: Json = False) -> None:
    """Check this machine: devices, execution providers, versions, extras, conflicts, and what to install."""
    report = examine()
    if as_json:
        print_json(report)
    else:
        typer.echo(render(report))


def examine() -> dict[str, Any]:
    """Collects versions, devices, execution providers that start, extras, commands, and problems with their fixes."""
    from lipsformer.inference.runtimes.tensorrt_library import FLAVOURS

    installed = installed_versions(PACKAGES)
    torch_devices = _torch_devices()
    tensorrt = {flavour: _tensorrt(flavour) for flavour in FLAVOURS}
    problems = []
    if "tensorrt" in installed and tensorrt["tensorrt"]["problem"]:  # TensorRT for RTX is useful without a GPU
        problems.append(tensorrt["tensorrt"]["problem"])
    providers, others = _onnxruntime(installed, cuda=any(device.startswith("cuda") for device in torch_devices))
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": cores(),
        "packages": {name: installed.get(name) for name in PACKAGES},
        "torch_devices": torch_devices,
        "onnxruntime_providers": providers,
        "bf16": _bf16(),
        "tensorrt": tensorrt,
        "extras": {extra: {"missing": missing_packages(extra), "for": EXTRAS[extra].purpose} for extra in EXTRAS},
        "commands": {command: missing_command(command) for command in NEEDS},
        "problems": problems + others,
    }


def _onnxruntime(installed: Mapping[str, str], *, cuda: bool) -> tuple[list[str], list[str]]:
    """ONNX Runtime's execution providers that start, and the problems; `cuda`: whether PyTorch sees a GPU."""
    from lipsformer.inference.runtimes import CUDA

    wheels = [name for name in ("onnxruntime", "onnxruntime-gpu") if name in installed]
    extra = f"'lipsformer[{'gpu' if cuda else 'cpu'}]'"
    if not wheels:
        return [], [f"no ONNX Runtime: pip install {extra}"]
    problems = []
    if len(wheels) == 2:
        problems.append(
            "onnxruntime and onnxruntime-gpu are both installed, and overwrite each other's files: "
            f"pip uninstall -y onnxruntime onnxruntime-gpu && pip install {extra}"
        )
    try:
        providers = _working_providers()
    except Exception as error:  # noqa: BLE001 - a broken installation may raise anything
        problems.append(
            f"ONNX Runtime does not start ({' '.join(str(error).split())[:200]}): "
            f"pip uninstall -y {' '.join(wheels)} && pip install {extra}"
        )
        return [], problems
    if "onnxruntime-gpu" in wheels and CUDA not in providers:
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
    return providers, problems


def render(report: dict[str, Any]) -> str:
    """Formats the report for a terminal."""
    versions = report["packages"]
    lines = [
        f"python       {report['python']} on {report['platform']}, {report['cores']} cores",
        f"torch runs   {', '.join(report['torch_devices']) or 'not installed'}",
        f"onnxruntime  {', '.join(report['onnxruntime_providers']) or 'not usable'}",
        f"openvino     {report['bf16']}",
        *(f"{flavour:12} {state['use']}" for flavour, state in report["tensorrt"].items()),
        "",
        *(f"{name:16} {version or '-'}" for name, version in versions.items()),
        "",
        *_extras(report["extras"]),
        *_missing_commands(report["commands"]),
        "",
    ]
    lines += [f"! {problem}" for problem in report["problems"]] or ["No problems found."]
    return "\n".join(lines)


def _extras(extras: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line for each extra: whether it is installed, and what it is for."""
    return [
        f"{'cpu or gpu' if extra == 'cpu' else extra:12} {'-' if state['missing'] else 'installed':10} {state['for']}"
        for extra, state in extras.items()
    ]


def _missing_commands(commands: Mapping[str, str | None]) -> list[str]:
    """A line for each pip command, with the commands that need it."""
    names: dict[str, list[str]] = {}
    for name, fix in commands.items():
        if fix is not None:
            names.setdefault(fix, []).append(name)
    return [f"to use {', '.join(found)}: {fix}" for fix, found in names.items()]


def _bf16() -> str:
    """Whether OpenVINO can run bundles in bf16 here, or why not."""
    from lipsformer.inference.runtimes.openvino import check_bf16
    from lipsformer.system.errors import InputError
    from lipsformer.system.hardware import bf16_instructions

    try:
        check_bf16()
    except InputError as error:
        return str(error)
    return f"runs bf16 ({bf16_instructions()})"


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
    if not is_installed("torch"):
        return []
    import torch

    names = [f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    return [f"cpu ({torch.backends.cpu.get_cpu_capability()})", *names]


def _working_providers() -> list[str]:
    """Execution providers that start a session: a GPU wheel lists CUDA as available even without a GPU."""
    from lipsformer.inference.runtimes import open_session

    providers: list[str] = open_session(PROBE, cuda=True).get_providers()
    return providers
