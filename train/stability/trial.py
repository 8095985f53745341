"""One training of a stability grid as a process: `python -m lipsformer.train.stability.trial DATA FOLDER DEVICE`.

FOLDER holds recipe.toml. The training is an ordinary one in FOLDER/run, so that it resumes as any other; once it has
ended, whether it diverged or not, FOLDER/result.json says how. The process ends when its standard input does, so that
it never outlives the one that started it, however that ended.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

from lipsformer.system import console
from lipsformer.system.atomic import atomic_write
from lipsformer.system.errors import InputError
from lipsformer.train.loop import DivergedError
from lipsformer.train.run import run_training
from lipsformer.train.run_folder import METRICS

__all__ = ["RECIPE", "RESULT", "run_trial"]

RECIPE, RESULT, RUN = "recipe.toml", "result.json", "run"


def run_trial(data: Path, folder: Path, device: str) -> None:
    """Trains FOLDER/recipe.toml to its end and writes FOLDER/result.json.

    The result's `epochs` are the lines of metrics.jsonl. If the training diverged, `diverged_at` is the first of the
    steps that were not finite, and `unfinished` the record of the epoch that this ended; otherwise both are null.

    Raises:
        InputError: as `run_training` does.
    """
    result: dict[str, Any] = {"diverged_at": None, "unfinished": None}
    try:
        run_training(data, output=folder / RUN, recipe=str(folder / RECIPE), resume=True, device=device)
    except DivergedError as end:
        result = {"diverged_at": end.step, "unfinished": end.record}
    metrics = folder / RUN / METRICS
    lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.is_file() else []
    result["epochs"] = [json.loads(line) for line in lines]
    with atomic_write(folder / RESULT) as draft:
        draft.write_text(json.dumps(result) + "\n", encoding="utf-8")


def _end_with_the_parent() -> None:
    # Unbuffered: a lock held here would stop the loader's forked workers, which close their standard input.
    while os.read(0, 1024):
        pass
    os._exit(1)


def main() -> None:
    """Runs the trial that the command line names; its last line on stderr says what was wrong with the input."""
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    data, folder, device = sys.argv[1:]
    try:
        run_trial(Path(data), Path(folder), device)
    except InputError as error:
        console.say(str(error))
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
