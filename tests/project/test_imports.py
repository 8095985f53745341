"""The import rule: the core's groups build on each other in one order, and train, export and serving on the core alone.

Only the commands know them all, inside their functions. Within a folder imports are relative, beyond it absolute.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PARTS = ("export", "serving", "train")

# A group of the core may import those in the rows above its own.
LAYERS = (
    ("system",),
    ("images",),
    ("model", "bundle"),
    ("checkpoints", "datasets"),
    ("inference",),
    ("evaluation",),
    ("integrations",),
)
LEVEL = {group: level for level, layer in enumerate(LAYERS) for group in layer}

Imported = tuple[str, int, int, bool]  # absolute name, line, dots of a relative import, inside a function


def imports(tree: ast.AST, package: str, *, inside: bool = False) -> Iterator[Imported]:
    """Each name that is imported, relative ones resolved against `package`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno, 0, inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            # `from x import y` may name a module y
            yield from ((f"{module}.{alias.name}", node.lineno, node.level, inside) for alias in node.names)
        function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from imports(node, package, inside=inside or function)


def package_of(file: str) -> str:
    """The package that a file (relative to the repository) is in, by its installed name."""
    folders = Path(file).parts[:-1]
    return ".".join(folders if folders[0] == "lipsformer" else ("lipsformer", *folders))


def group_of(module: str) -> str:
    """The group of the core, or the part, that an absolute name belongs to; "" outside of all."""
    names = module.split(".")
    return names[1] if names[0] == "lipsformer" and len(names) > 1 else ""


def may_import(group: str, target: str, *, inside: bool) -> bool:
    """Whether a module of `group` may import one of `target`, which is another group."""
    if group == "cli":
        return inside or target not in PARTS
    if target in LEVEL:
        return group in PARTS or LEVEL[target] < LEVEL.get(group, -1)
    return target not in ("cli", *PARTS)  # what is left are the public names


def violations(source: str, file: str) -> list[str]:
    """What breaks the rule in a file, named by its path from the repository."""
    package = package_of(file)
    group = group_of(package)
    wrong = []
    for module, line, dots, inside in imports(ast.parse(source), package):
        target = group_of(module)
        if module.split(".")[0] in PARTS:
            wrong.append(f"{file}:{line}: '{module}' is no installed name; it is 'lipsformer.{module}'")
        elif target != group and group and not may_import(group, target, inside=inside):
            wrong.append(f"{file}:{line}: {group} imports {module}")
        elif dots > 1:
            wrong.append(f"{file}:{line}: leaves its folder by dots; import {module} by its full name")
    return wrong


def source_files() -> list[str]:
    """Every source file, by its path from the repository; links are not followed, so that each is listed once."""
    found = [file for top in ("lipsformer", *PARTS) for file in (REPOSITORY / top).rglob("*.py")]
    return sorted(file.relative_to(REPOSITORY).as_posix() for file in found)


def test_the_import_rule_holds() -> None:
    files = source_files()
    assert len(files) > 150
    assert [wrong for file in files for wrong in violations((REPOSITORY / file).read_text(), file)] == []


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("lipsformer/model/blocks.py", "from lipsformer.train import run_training"),
        ("lipsformer/model/blocks.py", "from lipsformer import export"),
        ("lipsformer/model/blocks.py", "import lipsformer.serving.bento.service"),
        ("lipsformer/model/blocks.py", "def f():\n    from lipsformer.train import run_training"),
        ("lipsformer/model/blocks.py", "if TYPE_CHECKING:\n    from lipsformer.train import run_training"),
        ("lipsformer/model/blocks.py", "from lipsformer.bundle.manifest import Manifest"),  # beside it
        ("lipsformer/model/blocks.py", "from lipsformer.checkpoints.checkpoint import Checkpoint"),  # above it
        ("lipsformer/model/blocks.py", "def f():\n    from lipsformer.datasets import Split"),
        ("lipsformer/model/blocks.py", "from lipsformer.cli.main import main"),
        ("lipsformer/model/blocks.py", "from ..images.open import open_image"),
        ("lipsformer/model/blocks.py", "import train"),
        ("lipsformer/system/atomic.py", "from lipsformer.images.open import open_image"),
        ("lipsformer/inference/runtimes/base.py", "from ..predictor import Predictor"),
        ("lipsformer/inference/runtimes/base.py", "def train():\n    from lipsformer.train import run_training"),
        ("lipsformer/cli/train.py", "from lipsformer.train import run_training"),
        ("train/loop.py", "from lipsformer.export import export_bundle"),
        ("train/loop.py", "from lipsformer import serving"),
        ("train/loop.py", "from lipsformer.cli.options import Json"),
        ("train/loop.py", "from export.graph import build"),
        ("train/loop.py", "def f():\n    class A:\n        import lipsformer.export"),
        ("train/loop.py", "from ..export import export_bundle"),
        ("train/data/sampler.py", "from ..recipe import Recipe"),
        ("serving/bento/service.py", "from lipsformer.train.recipe import Recipe"),
    ],
)
def test_the_import_rule_bites(file: str, source: str) -> None:
    assert len(violations(source, file)) >= 1


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("lipsformer/model/blocks.py", "from .config import ModelConfig\nimport torch.export\nfrom . import norm"),
        ("lipsformer/model/blocks.py", "from lipsformer.system.errors import InputError"),
        ("lipsformer/__init__.py", "from .model.factory import create_model"),
        ("lipsformer/cli/train.py", "def train():\n    from lipsformer.train import run_training"),
        ("lipsformer/cli/app.py", "from .train import train\nfrom lipsformer.system.console import say"),
        ("train/loop.py", "from .recipe import Recipe\nfrom lipsformer.model.factory import create_model"),
        ("train/data/sampler.py", "from lipsformer.train.recipe import Recipe\nimport torch.utils.data"),
        ("train/loop.py", "import lipsformer\nfrom lipsformer import InputError"),
    ],
)
def test_the_import_rule_lets_the_rest_pass(file: str, source: str) -> None:
    assert violations(source, file) == []


def module_of(file: str) -> str:
    """The installed name of a file's module."""
    stem = Path(file).stem
    return package_of(file) if stem == "__init__" else f"{package_of(file)}.{stem}"


def circle(sources: Mapping[str, str]) -> list[str]:
    """Modules that import each other in a circle, if there are such among these sources by file."""
    modules = {module_of(file) for file in sources}
    graph = {}
    for file, source in sources.items():
        names = {name for name, *_ in imports(ast.parse(source), package_of(file))}
        found = {name if name in modules else name.rpartition(".")[0] for name in names}
        graph[module_of(file)] = (found & modules) - {module_of(file)}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert circle({file: (REPOSITORY / file).read_text() for file in source_files()}) == []


def test_a_circle_is_seen_even_if_it_closes_inside_a_function() -> None:
    sources = {
        "train/loop.py": "from lipsformer.train.data.sampler import EpochSampler",
        "train/data/sampler.py": "from .rng import generator",
        "train/data/rng.py": "def f():\n    from lipsformer.train import loop",
    }
    assert set(circle(sources)) == {
        "lipsformer.train.loop",
        "lipsformer.train.data.sampler",
        "lipsformer.train.data.rng",
    }
    sources["train/data/rng.py"] = "import random"
    assert circle(sources) == []


@pytest.mark.parametrize(
    "statement",
    [
        "import lipsformer",
        "import lipsformer.inference.predictor",
        "from lipsformer import load_predictor, Preprocessing, InputError",
        "import lipsformer.datasets.builtin",
        "import lipsformer.datasets",
    ],
)
def test_torch_is_not_imported_where_it_is_not_used(statement: str) -> None:
    script = (
        f"{statement}\nimport sys\nprint(sorted({{'torch', 'onnx', 'bentoml', 'matplotlib'}} & sys.modules.keys()))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("model", ["lipsformer_swin_nano", "swin_nano"])
def test_pytorchs_compiler_is_not_imported_to_load_a_checkpoint(model: str, tmp_path: Path) -> None:
    """It takes as long as PyTorch itself."""
    script = f"""if True:
        import sys
        from pathlib import Path

        import lipsformer

        model, path = lipsformer.create_model("{model}", 2, depths=(1, 2, 1, 1)), Path("model.safetensors")
        preprocessing = lipsformer.Preprocessing(image_size=64)
        weights = model.state_dict()
        lipsformer.save_checkpoint(
            path, config=model.config, weights=weights, classes=["a", "b"], preprocessing=preprocessing, metrics={{}}
        )
        lipsformer.load_checkpoint(path)
        print(sorted({{"torch", "torch._dynamo", "sympy"}} & sys.modules.keys()))
    """
    result = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "['torch']"


def test_a_training_without_a_teacher_imports_no_runtime() -> None:
    script = (
        "import sys, lipsformer.train; print(sorted({'onnx', 'onnxruntime', 'tensorrt', 'timm'} & sys.modules.keys()))"
    )
    result = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_every_public_name_can_be_had() -> None:
    import lipsformer

    assert lipsformer.__all__ == sorted(lipsformer.__all__)
    for name in lipsformer.__all__:
        assert getattr(lipsformer, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        lipsformer.nothing  # noqa: B018
