"""Load tests of the HTTP service, each with a server process of its own on the loopback interface.

    python benchmarks/serving/measure.py steady

A scenario prints its table and writes everything it found to results/NAME.json; README.md says what they are.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import time
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import psutil

from lipsformer.system.hardware import cores

SCENARIOS = ("saturation", "null", "steady", "overload", "soak", "faults", "phones", "builds", "protocol", "shadow")
HERE = Path(__file__).parent


def machine() -> dict[str, object]:
    """What was measured on, and how busy it was before."""
    packages = ("bentoml", "uvicorn", "starlette", "onnxruntime", "pillow", "uvloop")
    return {
        "python": platform.python_version(),
        "cores": cores(),
        "load_average": os.getloadavg()[0],
        "versions": {name: version(name) for name in packages},
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def end_children() -> int:
    """Kills what a scenario has left running; how many that were."""
    left = psutil.Process().children(recursive=True)
    for process in left:
        process.kill()
    psutil.wait_procs(left, timeout=10)
    return len(left)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--work", type=Path, default=HERE.parents[1] / "build" / "serving", help="for bundles and logs")
    common.add_argument("--results", type=Path, default=HERE / "results")
    commands = parser.add_subparsers(dest="scenario", required=True)
    modules = {name: import_module(name) for name in SCENARIOS}
    for name, module in modules.items():
        module.add_arguments(commands.add_parser(name, help=module.__doc__, parents=[common]))
    arguments = parser.parse_args()
    arguments.work = arguments.work.absolute()
    arguments.work.mkdir(parents=True, exist_ok=True)
    arguments.results.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started is ended
    about = machine()
    try:
        result = modules[arguments.scenario].run(arguments)
    finally:
        left = end_children()
        if left:
            print(f"{left} processes were left and have been killed", file=sys.stderr)
    settings = {name: str(value) for name, value in vars(arguments).items() if name not in ("work", "results")}
    document = {"machine": about, "settings": settings, "result": result}
    path = arguments.results / f"{arguments.scenario}.json"
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(modules[arguments.scenario].table(result))


if __name__ == "__main__":
    main()
