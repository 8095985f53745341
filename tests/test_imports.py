"""The import rule: train, export and serving depend on the core, never on each other; only the CLI knows them."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PARTS = ("export", "serving", "train")


def imports(tree: ast.AST, package: str, depth: int = 0) -> Iterator[tuple[str, int, bool]]:
    """Each imported module as (absolute name, line, inside a function), relative names resolved against `package`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno, depth > 0) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            # `from x import y` may name a module y
            yield from ((f"{module}.{alias.name}", node.lineno, depth > 0) for alias in node.names)
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from imports(node, package, depth + inside)


def part_of(module: str) -> str | None:
    """Which of the three parts an absolute module name belongs to; "core" for the rest of lipsformer."""
    names = module.split(".")
    if names[0] in PARTS:
        return names[0]
    if names[0] != "lipsformer":
        return None
    return names[1] if len(names) > 1 and names[1] in PARTS else "core"


def violations(source: str, *, part: str, file: str) -> list[str]:
    """What breaks the rule in a file of `part` ("core" or one of the three)."""
    package = "lipsformer" if part == "core" else f"lipsformer.{part}"
    folders = Path(file).parts[:-1]
    wrong = []
    for module, line, in_function in imports(ast.parse(source), ".".join((package, *folders))):
        target = part_of(module)
        if target is None:
            continue
        if module.split(".")[0] in PARTS:
            wrong.append(f"{file}:{line}: '{module}' is no installed name; it is 'lipsformer.{module}'")
        elif part == "core" and target != "core" and not (folders == ("cli",) and in_function):
            wrong.append(f"{file}:{line}: the core imports {module}")
        elif part != "core" and target not in ("core", part):
            wrong.append(f"{file}:{line}: {part} imports {module}")
    if part != "core":
        wrong += [
            f"{file}:{node.lineno}: names its own package; import it relatively"
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.ImportFrom)
            and ((node.level == 0 and (node.module or "").startswith(package)) or node.level > 1)
        ]
    return wrong


@pytest.mark.parametrize("part", ["core", *PARTS])
def test_the_import_rule_holds(part: str) -> None:
    folder = REPOSITORY / ("lipsformer" if part == "core" else part)
    files = sorted(folder.rglob("*.py"))
    assert files
    found = [v for file in files for v in violations(file.read_text(), part=part, file=str(file.relative_to(folder)))]
    assert found == []


@pytest.mark.parametrize(
    ("part", "file", "source"),
    [
        ("core", "models.py", "from lipsformer.train import run_training"),
        ("core", "models.py", "from .train.run import run_training"),
        ("core", "models.py", "from . import export"),
        ("core", "models.py", "import lipsformer.serving.service"),
        ("core", "models.py", "def f():\n    from .train import run_training"),
        ("core", "models.py", "if TYPE_CHECKING:\n    from .train import run_training"),
        ("core", "cli/train.py", "from lipsformer.train import run_training"),
        ("core", "cli/train.py", "from ..train import run_training"),
        ("core", "cli.py", "def train():\n    from .train import run_training"),
        ("core", "runtimes/cli.py", "def train():\n    from lipsformer.train import run_training"),
        ("core", "models.py", "import train"),
        ("train", "loop.py", "from lipsformer.export import export_bundle"),
        ("train", "loop.py", "from lipsformer import serving"),
        ("train", "loop.py", "from export.graph import build"),
        ("train", "loop.py", "def f():\n    class A:\n        import lipsformer.export"),
        ("train", "loop.py", "from ..export import export_bundle"),
        ("train", "loop.py", "from ..models import create_model"),
        ("train", "loop.py", "from lipsformer.train.recipe import Recipe"),
        ("serving", "service.py", "from lipsformer.train.recipe import Recipe"),
    ],
)
def test_the_check_bites(part: str, file: str, source: str) -> None:
    assert len(violations(source, part=part, file=file)) >= 1


@pytest.mark.parametrize(
    ("part", "file", "source"),
    [
        ("core", "models.py", "from .config import VARIANTS\nfrom . import images\nimport torch.export"),
        (
            "core",
            "cli/train.py",
            "def train():\n    from lipsformer.train import run_training\n    import lipsformer.export.bundle",
        ),
        ("core", "cli/app.py", "from .train import train\nfrom . import export"),
        (
            "train",
            "loop.py",
            "from .recipe import Recipe\nfrom lipsformer.models import create_model\nimport lipsformer",
        ),
        ("train", "loop.py", "from lipsformer import models\nimport torch.utils.data"),
    ],
)
def test_the_check_lets_the_rest_pass(part: str, file: str, source: str) -> None:
    assert violations(source, part=part, file=file) == []


@pytest.mark.parametrize(
    "statement",
    [
        "import lipsformer",
        "import lipsformer.prediction",
        "from lipsformer import load_predictor, Preprocessing, InputError",
        "import lipsformer.fetch",
        "import lipsformer.datasets",
    ],
)
def test_torch_is_not_imported_where_it_is_not_used(statement: str) -> None:
    script = (
        f"{statement}\nimport sys\nprint(sorted({{'torch', 'onnx', 'bentoml', 'matplotlib'}} & sys.modules.keys()))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_every_public_name_can_be_had() -> None:
    import lipsformer

    assert lipsformer.__all__ == sorted(lipsformer.__all__)
    for name in lipsformer.__all__:
        assert getattr(lipsformer, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        lipsformer.nothing  # noqa: B018
