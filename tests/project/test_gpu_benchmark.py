"""`benchmarks/gpu/measure.py`: every part runs without a GPU, and one that fails or hangs costs the others nothing."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu" / "measure.py"
PARTS = """
import json, os, pathlib, subprocess, sys, time
name, folder = sys.argv[1], pathlib.Path(sys.argv[2])
found = {"tables": [{"title": "Rows", "columns": ["name", "n"], "rows": [[name, 1]]}]}
if name == "fails":
    print("the reason")
    sys.exit(3)
if name == "skips":
    found["skipped"] = "a library is missing"
if name == "finds":
    found["failures"] = ["fp16: beyond the limit"]
(folder / f"{name}.json").write_text(json.dumps(found))
if name == "hangs":
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    pathlib.Path(os.environ["SLEEPER"]).write_text(str(sleeper.pid))
    print("waiting", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script as a module, with parts that do what their names say."""
    spec = importlib.util.spec_from_file_location("gpu_benchmark", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu_benchmark", module)
    spec.loader.exec_module(module)
    (tmp_path / "parts.py").write_text(PARTS)
    monkeypatch.setattr(module, "HERE", tmp_path)
    monkeypatch.setenv("SLEEPER", str(tmp_path / "sleeper"))
    monkeypatch.setattr(sys, "argv", ["measure.py", "--output", str(tmp_path / "out")])
    return module


def is_running(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.is_file() and stat.read_text().rpartition(") ")[2][0] != "Z"


def test_a_part_that_fails_or_hangs_does_not_stop_the_next(
    benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = {"hangs": 1.5, "fails": 60, "skips": 60, "finds": 60, "passes": 60}
    monkeypatch.setattr(benchmark, "PARTS", [benchmark.Part(name, name, limit) for name, limit in limits.items()])
    monkeypatch.setattr(benchmark, "LEAST", 1)
    assert benchmark.main() == 1
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {part["name"]: (part["status"], part["reason"]) for part in results["parts"]} == {
        "hangs": ("timed out", "stopped after 2 s"),
        "fails": ("failed", "exit status 3"),
        "skips": ("skipped", "a library is missing"),
        "finds": ("failed", "fp16: beyond the limit"),
        "passes": ("passed", None),
    }
    page = (tmp_path / "out" / "README.md").read_text()
    assert "| hangs | 1 |" in page  # what it had written
    assert "    the reason\n" in page
    sleeper = int((tmp_path / "sleeper").read_text())
    for _ in range(100):
        if not is_running(sleeper):
            break
        time.sleep(0.05)
    assert not is_running(sleeper)


def test_parts_share_the_total(benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "PARTS", [benchmark.Part("passes", "passes", 60)])
    monkeypatch.setattr(benchmark, "TOTAL", 4)
    assert benchmark.main() == 0
    (part,) = json.loads((tmp_path / "out" / "results.json").read_text())["parts"]
    assert part["status"] == "skipped"
    assert part["reason"].startswith("nothing is left of the 4 s")


# Runs parts of `parts.py` as `measure.py` does, but imports PyTorch once, for all of them.
FORKED = """
import importlib, json, os, runpy, sys

script, folder, *parts = sys.argv[1:]
statuses = {}
for module in ("torch._dynamo", "lipsformer.train", "lipsformer.export.bundle"):
    importlib.import_module(module)
for part in parts:
    if not (child := os.fork()):
        sys.argv = [script, part, folder, "--dry-run"]
        runpy.run_path(script, run_name="__main__")
        sys.exit()
    statuses[part] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
with open(f"{folder}/statuses", "w") as file:
    json.dump(statuses, file)
"""


@pytest.mark.slow
def test_every_part_runs_on_the_cpu(benchmark: Any, tmp_path: Path) -> None:
    names = [part.name for part in benchmark.PARTS if part.name != "tests"]
    command = [sys.executable, "-c", FORKED, str(SCRIPT.with_name("parts.py")), str(tmp_path), *names]
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[2]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert json.loads((tmp_path / "statuses").read_text()) == dict.fromkeys(names, 0), done.stdout + done.stderr
    found = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in names}
    outcomes = {name: benchmark.judge(0, found[name], 60) for name in names}
    skipped = {name for name, (outcome, _) in outcomes.items() if outcome == benchmark.SKIPPED}
    assert {outcome for outcome, _ in outcomes.values()} <= {benchmark.PASSED, benchmark.SKIPPED}, outcomes
    assert skipped <= {"tensorrt"}
    assert all(found[name]["tables"] for name in names if name not in skipped)


@pytest.mark.slow
def test_the_script_runs_a_real_part(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--dry-run", "--part", "tests", "--output", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + (tmp_path / "README.md").read_text()
    (part,) = json.loads((tmp_path / "results.json").read_text())["parts"]
    assert part["name"] == "tests"
    if part["status"] == "skipped":
        assert part["reason"].endswith("needs a GPU, and PyTorch sees none")
    else:
        assert part["found"]["tables"]
