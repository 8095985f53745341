"""One training of a stability grid, in a separate process.

Its folder holds recipe.toml. The training runs in the folder's `run`, resumes like any other, and says in log.txt what
it does. When it has finished or diverged, its result is in result.json.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import threading
from multiprocessing import connection
from pathlib import Path
from typing import Any

import torch

from lipsformer.system import console
from lipsformer.system.atomic import atomic_write
from lipsformer.system.errors import InputError
from lipsformer.train.loop import DivergedError
from lipsformer.train.run import run_training
from lipsformer.train.run_folder import METRICS

__all__ = ["LOG", "RECIPE", "RESULT", "run_process", "run_trial"]

LOG, RECIPE, RESULT, RUN = "log.txt", "recipe.toml", "result.json", "run"


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


def run_process(data: Path, folder: Path, device: str, threads: int) -> None:
    """All that the process of a trial does. It ends when the process that started it ends, however that happens.

    The last line of FOLDER/log.txt says what is wrong with the input, if anything is.
    """
    os.setsid()  # Ctrl-C reaches the grid's process alone, which then stops the others
    with (folder / LOG).open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    torch.set_num_threads(threads)
    try:
        run_trial(data, folder, device)
    except InputError as error:
        console.say(str(error))
        sys.exit(error.exit_code)


def _end_with(parent: int) -> None:
    connection.wait([parent])
    os._exit(1)
