"""One training of a stability grid as a process: `python -m lipsformer.train.stability.trial DATA FOLDER DEVICE`.

FOLDER holds recipe.toml. The training runs in FOLDER/run and resumes like any other. When it has finished or diverged,
its result is in FOLDER/result.json. The process ends when its standard input closes, so that it never outlives the one
that started it.
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

    The result's `epochs` are the lines of metrics.jsonl. If the training diverged, `diverged_at` is the first step that
    was not finite, and `unfinished` holds the training metrics of its epoch. Otherwise both are null.

    Raises:
        InputError: as `run_training`.
    """
    result: dict[str, Any] = {"diverged_at": None, "unfinished": None}
    try:
        run_training(data, output=folder / RUN, recipe=str(folder / RECIPE), resume=True, device=device)
    except DivergedError as end:
        result = {"diverged_at": end.step, "unfinished": end.unfinished}
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
    """Runs the trial of the command line. The last line on stderr says what is wrong with the input, if anything is."""
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    data, folder, device = sys.argv[1:]
    try:
        run_trial(Path(data), Path(folder), device)
    except InputError as error:
        console.say(str(error))
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
