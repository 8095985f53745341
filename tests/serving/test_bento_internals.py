"""BentoML in one folder: its private names are where serving/bento/ expects them, and nothing else needs it."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from lipsformer.serving.bento import MENTIONED, PRIVATE_NAMES
from tests.support.trained import Trained

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "serving" / "bento"
STORE = ROOT / "lipsformer" / "bundle" / "store.py"  # by BentoML's public API
BENTOML = {"bentoml", "_bentoml_sdk", "_bentoml_impl", "circus", "uvicorn"}

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside BentoML, while it is imported


def has(owner: Any, name: str) -> bool:
    """Whether an object has an attribute, or is a class whose methods mention it: those of its instances."""
    if hasattr(owner, name):
        return True
    methods = [part for one in getattr(owner, "__mro__", ()) for part in vars(one).values() if inspect.isfunction(part)]
    return any(name in method.__code__.co_names for method in methods)


def moved(names: Mapping[str, Iterable[str]], mentioned: Mapping[str, Iterable[str]]) -> list[str]:
    """What is no longer there, each in a sentence."""
    found = []
    for module in (*names, *mentioned):
        try:
            home = importlib.import_module(module)
        except ImportError:
            found.append(f"module {module} is gone")
            continue
        source = inspect.getsource(home)
        found += [f"{module} no longer mentions {text}" for text in mentioned.get(module, ()) if text not in source]
        for name in names.get(module, ()):
            owner: Any = home
            for part in name.split("."):
                if not has(owner, part):
                    found.append(f"{module} no longer has {name} (at {part})")
                    break
                owner = getattr(owner, part, None)
    return found


def test_bentoml_has_not_moved_what_we_rely_on() -> None:
    gone = moved(PRIVATE_NAMES, MENTIONED)
    assert not gone, f"{'; '.join(gone)}. Adapt serving/bento/, which explains what each is for"


def test_a_moved_name_is_reported_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("circus.sighandler.SysHandler.handle_hup")
    monkeypatch.delattr("_bentoml_sdk.Service.to_asgi")
    names = {**PRIVATE_NAMES, "bentoml._internal.nowhere": ("Name",), "circus.arbiter": ("Arbiter.listeners",)}
    assert sorted(moved(names, {"bentoml.serving": ("NO_SUCH_VARIABLE",)})) == [
        "_bentoml_sdk no longer has Service.to_asgi (at to_asgi)",
        "bentoml.serving no longer mentions NO_SUCH_VARIABLE",
        "circus.arbiter no longer has Arbiter.listeners (at listeners)",
        "circus.sighandler no longer has SysHandler.handle_hup (at handle_hup)",
        "module bentoml._internal.nowhere is gone",
    ]


def private_imports(source: str) -> list[str]:
    """Modules that a source imports for which the table must have an entry."""
    imported = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and not node.level:
            imported.append(str(node.module))
        elif isinstance(node, ast.Import):
            imported += [alias.name for alias in node.names]
    return [name for name in imported if name.split(".")[0] in BENTOML]


def test_only_the_folder_imports_bentoml_and_lists_what_it_takes() -> None:
    assert private_imports("def f():\n    from bentoml._internal.context import trace_context") != []
    for file in (*ROOT.glob("lipsformer/**/*.py"), *ROOT.glob("serving/**/*.py")):
        modules = private_imports(file.read_text())
        if FOLDER in file.resolve().parents:
            assert set(modules) - {"bentoml"} <= PRIVATE_NAMES.keys(), file
        else:
            assert modules == (["bentoml"] if file == STORE else []), file


PLAIN = """
import asyncio, contextlib, os, sys
import httpx, uvicorn
from lipsformer.serving.app import create_app
from lipsformer.serving.observability import Observer
from lipsformer.serving.pipeline.model_manager import ModelManager
from lipsformer.serving.settings import Settings

async def main():
    settings = Settings.from_environment(os.environ)
    observer = Observer.start()
    models = ModelManager(settings, observer.metrics, on_lost=lambda: None)
    await models.start()
    server = uvicorn.Server(uvicorn.Config(create_app(models, settings, None, observer), port=0, log_config=None))
    serving = asyncio.ensure_future(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        with open(sys.argv[1], "rb") as photo:
            answer = await client.post("/classify", files={"image": photo})
        metrics = await client.get("/metrics")
    server.should_exit = True
    await serving
    await models.close()
    observer.close()
    assert "lipsformer_answered_total 1.0" in metrics.text
    assert not {"bentoml", "_bentoml_sdk", "circus"} & sys.modules.keys()
    print(answer.json()["predictions"][0]["label"])

asyncio.run(main())
"""


def test_the_application_runs_under_plain_uvicorn(trained: Trained) -> None:
    from lipsformer import load_predictor

    photo = trained.data / "Kaiser" / "Kaiser.jpg"
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, photo],
        env={"LIPSFORMER_BUNDLE": str(trained.bundle), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    ((best, *_),) = load_predictor(trained.bundle, "cpu").predict([photo])
    assert done.stdout.strip() == best.label
