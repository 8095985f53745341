"""Optional packages: which extra of pyproject.toml installs each, and the line that names it if one is missing."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import sys
from collections.abc import Mapping
from typing import Any

from .errors import InputError

__all__ = [
    "EXTRAS",
    "Extra",
    "MissingPackageError",
    "import_public",
    "is_installed",
    "missing_package",
    "missing_packages",
    "pip_command",
    "require",
]


class MissingPackageError(InputError, ImportError):
    """An optional package is not installed. The message names the command that installs it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Extra:
    """An extra: the modules that show whether it is installed, with their packages' names, and what it is for."""

    modules: Mapping[str, str]
    purpose: str


# The extras `report`, `train` and `export` overlap: a module belongs to the first one that lists it.
EXTRAS = {
    "cpu": Extra(
        modules={"onnxruntime": "ONNX Runtime"}, purpose="predict, eval, similar, verify, serve: bundles, .onnx"
    ),
    "serve": Extra(modules={"bentoml": "BentoML"}, purpose="serve, bento"),
    "report": Extra(
        modules={"matplotlib": "Matplotlib", "jinja2": "Jinja2"}, purpose="reports with plots: --output, --sheet"
    ),
    "train": Extra(
        modules={"torch": "PyTorch", "matplotlib": "Matplotlib"},
        purpose="train and all that takes a checkpoint; create_model, load_checkpoint",
    ),
    "export": Extra(
        modules={"torch": "PyTorch", "onnx": "onnx", "matplotlib": "Matplotlib"}, purpose="export, .onnx teachers"
    ),
    "data": Extra(modules={"pyarrow": "pyarrow"}, purpose="Parquet; the dataset fruit"),
    "formats": Extra(
        modules={"pillow_heif": "pillow-heif", "pillow_jxl": "pillow-jxl-plugin"}, purpose="HEIC and JPEG XL"
    ),
    "cloud": Extra(modules={"obstore": "obstore"}, purpose="predict: s3://, gs://, az://"),
    "hub": Extra(modules={"huggingface_hub": "huggingface-hub"}, purpose="push; models hf:OWNER/NAME"),
    "otlp": Extra(
        modules={"opentelemetry.exporter.otlp.proto.http": "OpenTelemetry's OTLP exporter"}, purpose="serve: traces"
    ),
    "tensorboard": Extra(
        modules={"torch": "PyTorch", "tensorboard": "tensorboard"}, purpose="train --track tensorboard"
    ),
    "mlflow": Extra(
        modules={"torch": "PyTorch", "mlflow": "MLflow", "sqlalchemy": "SQLAlchemy"},
        purpose="train --track mlflow; push to its registry",
    ),
    "wandb": Extra(modules={"torch": "PyTorch", "wandb": "wandb"}, purpose="train --track wandb"),
    "trackio": Extra(modules={"torch": "PyTorch", "trackio": "Trackio"}, purpose="train --track trackio"),
    "openvino": Extra(modules={"openvino": "OpenVINO"}, purpose="bundles in bf16, on CPUs with AMX or AVX512-BF16"),
    "trt": Extra(modules={"tensorrt": "TensorRT", "torch": "PyTorch"}, purpose="engines, on NVIDIA GPUs"),
    "trt-rtx": Extra(
        modules={"tensorrt_rtx": "TensorRT for RTX", "torch": "PyTorch"}, purpose="engines for RTX; export --trt-check"
    ),
    "ray": Extra(modules={"ray": "Ray"}, purpose="predict --engine ray"),
    "search": Extra(modules={"usearch": "usearch"}, purpose="similar: more than a million rows"),
    "timm": Extra(modules={"torch": "PyTorch", "timm": "timm"}, purpose="timm models, timm:NAME teachers"),
}


def is_installed(module: str) -> bool:
    """Whether a module can be found; it is not imported. A mere folder of its name does not count."""
    if module in sys.modules:
        return sys.modules[module] is not None
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:  # a package that it lies in
        return False
    return found is not None and found.origin is not None


def missing_packages(extra: str, *modules: str) -> list[str]:
    """The names of an extra's packages that are not installed; only those of `modules`, if any are given."""
    known = EXTRAS[extra].modules
    return [known[module] for module in modules or known if not is_installed(module)]


def pip_command(extra: str) -> str:
    """The command that installs an extra."""
    return f"pip install 'lipsformer[{extra}]'" + (" or 'lipsformer[gpu]'" if extra == "cpu" else "")


def require(extra: str, *modules: str, what: str = "") -> None:
    """Check that an extra is installed, or only those of its `modules` that are given.

    Raises:
        MissingPackageError: if it is not; `what`, such as an option, starts the message.
    """
    if missing := missing_packages(extra, *modules):
        raise MissingPackageError(
            f"{what}{': ' if what else ''}{', '.join(missing)} {'are' if len(missing) > 1 else 'is'} not installed; "
            f"{pip_command(extra)}"
        )


def missing_package(error: ModuleNotFoundError) -> ModuleNotFoundError | MissingPackageError:
    """The error that names the extra of a module that could not be imported; `error` itself if it is in none."""
    for extra, found in EXTRAS.items():
        for module, title in found.modules.items():
            if (error.name or "").split(".")[0] == module.split(".")[0]:
                return MissingPackageError(f"{title} is not installed; {pip_command(extra)}")
    return error


def import_public(package: str, homes: Mapping[str, str], name: str) -> Any:
    """A public name of a package that imports each when it is first used; `homes` has the module of each, by name.

    Raises:
        AttributeError: if there is no such name.
        MissingPackageError: if it needs a package that is not installed.
    """
    if name not in homes:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(f".{homes[name]}", package), name)
    except ModuleNotFoundError as error:
        raise missing_package(error) from None
