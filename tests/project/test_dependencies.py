"""Every library that the package imports is declared in pyproject.toml, and a Bento gets those that serving imports."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path

import pytest

from lipsformer.serving.bento.package import CORE, EXTRAS, requirements
from lipsformer.system import extras

ROOT = Path(__file__).parents[2]
SOURCES = ("lipsformer", "train", "export", "serving")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

HOMES = metadata.packages_distributions()
OTHER_HOMES = {"opentelemetry.exporter.otlp.proto.http": ["opentelemetry-exporter-otlp-proto-http"]}

# Modules of a Bento that a server does not need: engines run in PyTorch's memory, and without it there are none.
OPTIONAL_IN_A_BENTO = {"torch", "tensorrt", "tensorrt_rtx", "onnxruntime", "openvino", "matplotlib", "mlflow"}


def imported(source: str) -> set[str]:
    """The top-level modules that a source imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.split(".")[0])
    return found - sys.stdlib_module_names - {"lipsformer", "__future__"}


def declared(requirements: Iterable[str]) -> set[str]:
    """The distributions that requirements name, normalized as PyPI does."""
    return {normalized(re.split(r"[^\w.-]", line, maxsplit=1)[0]) for line in requirements}


def normalized(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def undeclared(modules: Iterable[str], requirements: Iterable[str], homes: Mapping[str, Iterable[str]]) -> list[str]:
    """Modules of which no distribution is required; one that is not installed must be required by its own name."""
    names = declared(requirements)
    return sorted(
        module for module in modules if not {normalized(home) for home in homes.get(module, [module])} & names
    )


def modules_of(files: Iterable[Path]) -> set[str]:
    return {module for file in files for module in imported(file.read_text())}


def test_what_is_imported_is_declared() -> None:
    files = [file for source in SOURCES for file in (ROOT / source).rglob("*.py")]
    users = [name for name in PROJECT["optional-dependencies"] if name != "dev"]
    lines = [*PROJECT["dependencies"], *(line for name in users for line in PROJECT["optional-dependencies"][name])]
    modules = modules_of(files)
    assert {"torch", "circus", "uvicorn", "prometheus_client"} <= modules
    assert undeclared(modules, lines, HOMES) == []


def of_extra(name: str) -> set[str]:
    """The distributions that an extra requires, with those of the extras that it includes."""
    lines = PROJECT["optional-dependencies"][name]
    included = [part for line in lines if line.startswith("lipsformer[") for part in re.findall(r"[\w-]+", line)[1:]]
    return declared(lines).union(*map(of_extra, included))


def test_the_table_of_extras_is_that_of_the_project() -> None:
    assert {*extras.EXTRAS, "gpu", "all", "dev", "docs"} == set(PROJECT["optional-dependencies"])
    for name, extra in extras.EXTRAS.items():
        modules = [module for module in extra.modules if normalized(module.split(".")[0]) not in of_extra(name)]
        assert undeclared(modules, of_extra(name), HOMES | OTHER_HOMES) == [], name


def test_all_has_every_extra_but_alternatives() -> None:
    (line,) = PROJECT["optional-dependencies"]["all"]
    left_out = {"cpu", "openvino", "trt", "trt-rtx", "mlflow", "ray", "search", "timm", "trackio", "wandb"}
    assert set(line.removeprefix("lipsformer[").removesuffix("]").split(",")) == set(extras.EXTRAS) - left_out


def core_of_a_bento() -> set[Path]:
    """The modules of the core that are packed into a Bento."""
    return {file for part in CORE for file in (ROOT / "lipsformer").glob(part) if file.suffix == ".py"}


def test_a_bento_gets_what_its_files_import() -> None:
    modules = modules_of([*(ROOT / "serving").rglob("*.py"), *core_of_a_bento()]) - OPTIONAL_IN_A_BENTO
    assert undeclared(modules, requirements(*EXTRAS), HOMES) == []


def test_a_bento_has_the_modules_that_its_files_import_when_loaded() -> None:
    core, missing = core_of_a_bento(), []
    for file in [*(ROOT / "serving").rglob("*.py"), *core]:
        for node in ast.parse(file.read_text()).body:  # what functions import is for other uses
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lipsformer."):
                path = ROOT.joinpath(*str(node.module).split("."))
                if "serving" not in path.parts and not {path.with_suffix(".py"), path / "__init__.py"} & core:
                    missing.append(f"{file.relative_to(ROOT)}: {node.module}")
    assert missing == []


def test_bentoml_stays_below_its_next_minor_version() -> None:
    (bentoml,) = (line for line in PROJECT["optional-dependencies"]["serve"] if line.startswith("bentoml"))
    assert bentoml == "bentoml>=1.4.39,<1.5"


@pytest.mark.parametrize(
    ("source", "missing"),
    [
        ("import numpy.linalg\nfrom PIL import Image", []),
        ("def f():\n    import circus.util", ["circus"]),
        ("if TYPE_CHECKING:\n    from yaml import load", ["yaml"]),
        ("import not_installed", ["not_installed"]),
        ("from .yaml import load\nimport os\nimport lipsformer.system", []),
    ],
)
def test_an_undeclared_import_is_found(source: str, missing: list[str]) -> None:
    assert undeclared(imported(source), ["numpy>=2", "Pillow>=12; x"], HOMES) == missing
