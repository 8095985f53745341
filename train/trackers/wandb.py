"""Runs in Weights & Biases: online if you are logged in, else offline in the run folder."""

from __future__ import annotations

import netrc
import os
import struct
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lipsformer.train.listeners.listener import RunInfo

from .tracker import PROJECT, Tracker

__all__ = ["WandB", "read_records"]

# The transaction log is a LevelDB log: blocks of 32 KiB with chunks of a record, each behind checksum, length and type.
MAGIC, BLOCK, CHUNK = b":W&B\xe1\xbe\x00", 32 * 1024, struct.Struct("<IHB")
WHOLE, LAST_PART = 1, 4
FLUSH_INTERVAL = 0.5  # seconds; by default SIGKILL loses what the last 15 s brought


class WandB(Tracker):
    """Writes a run of the project `lipsformer`, or of that in $WANDB_PROJECT.

    A resumed training writes another file with the same run id: `wandb sync` uploads them as one run.
    """

    name = "wandb"
    module = "wandb"

    def open(self, run: RunInfo) -> int:
        """Opens the run by its id."""
        general = self.library.setup(self.library.Settings(silent=True)).settings
        offline = general.mode != "online" or not _logged_in(general)
        self._name = f"{run.name}-{run.run_id[:8]}"
        self._record = self.library.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=run.run_id,
            name=run.name,
            config=run.recipe.to_dict(),
            dir=os.environ.get("WANDB_DIR", run.folder.path),
            mode="offline" if offline else "online",
            resume="allow",
            settings=self.library.Settings(
                silent=True, console="off", init_timeout=30, x_transaction_log_flush_interval=FLUSH_INTERVAL
            ),
        )
        folder = Path(self._record.settings.sync_dir)
        self.where = f"offline; wandb sync {folder.parent}" if offline else str(self._record.url)
        earlier = [path for path in folder.parent.glob(f"*-{run.run_id}/*.wandb") if path.parent != folder]
        try:
            last = max((record.history.step.num for path in earlier for record in read_records(path)), default=0)
        except Exception:  # noqa: BLE001  # files of another version of wandb
            last = run.step
        return max(last, int(self._record.starting_step) - 1)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds the metrics of a step. wandb's own process writes them, half a second later at most."""
        self._record.log(dict(metrics), step=step, commit=True)

    def add_files(self, plots: Sequence[Path], checkpoint: Path) -> None:
        """Adds the plots as images, and the checkpoint as an artifact of the type `model`."""
        self._record.log({f"plots/{plot.stem}": self.library.Image(str(plot)) for plot in plots})
        artifact = self.library.Artifact(f"checkpoint-{self._name}", type="model")
        artifact.add_file(str(checkpoint))
        self._record.log_artifact(artifact)

    def close(self, *, finished: bool) -> None:
        """Ends the run, once everything is written or uploaded."""
        self._record.finish(exit_code=0 if finished else 1)


def read_records(path: Path) -> Iterator[Any]:
    """The records (protocol buffers) of a transaction log (`.wandb`), without its truncated end.

    Raises:
        ValueError: if it is something else, or protobuf's DecodeError.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    content = path.read_bytes()
    if content and not content.startswith(MAGIC):
        raise ValueError(f"{path}: not a transaction log of Weights & Biases")
    position, record = len(MAGIC), b""
    while position + CHUNK.size <= len(content):
        if (left := BLOCK - position % BLOCK) < CHUNK.size:
            position += left
            continue
        _, length, kind = CHUNK.unpack_from(content, position)
        record += content[position + CHUNK.size : position + CHUNK.size + length]
        position += CHUNK.size + length
        if kind not in (WHOLE, LAST_PART) or position > len(content):
            continue
        yield Record.FromString(record)
        record = b""


def _logged_in(settings: Any) -> bool:
    """Whether wandb finds a key without asking for it."""
    if settings.api_key or os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urllib.parse.urlsplit(settings.base_url).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
