"""Where the rows of a bulk prediction go: a file or a folder, on this machine or in an object store."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from lipsformer.datasets.tables.rows import import_pyarrow
from lipsformer.system.atomic import atomic_directory, atomic_write, draft_directory, taken
from lipsformer.system.errors import InputError

from . import stores
from .remote import WEB
from .rows import Row
from .settings import Part
from .writers import ENDINGS, PARQUET, write_file, write_folder

__all__ = ["Output"]

COMPLETE = "_SUCCESS"  # the last object of a folder; readers skip names with a leading _


@dataclasses.dataclass(frozen=True, kw_only=True)
class Output:
    """What `--output` names. `ending` is that of the file, or "" for a folder of Parquet files.

    `state` is where the state of a prediction lies, without its ending: next to a file of this machine, or in `folder`
    if it is given. For an object store that is the current folder.
    """

    name: str
    ending: str
    state: Path

    @classmethod
    def of(cls, text: str, folder: Path | None = None) -> Self:
        """The file or folder that `--output` names.

        Raises:
            InputError: if it has another ending, is on a web server, or needs pyarrow, which is missing.
        """
        remote = stores.is_object(text)
        name = text.rstrip("/") if remote else str(Path(text))
        path = Path(stores.place(name)[2] if remote else name)
        ending = "" if text.endswith("/") else path.suffix.lower()
        if text.lower().startswith(WEB):
            raise InputError(f"--output {text}: a web server takes no rows; give a path, or s3://, gs:// or az://")
        if ending not in ("", *ENDINGS) or not path.name:
            raise InputError(
                f"--output {text}: write a file that ends in {', '.join(ENDINGS)}, or a folder (end it in /)"
            )
        if ending in ("", PARQUET):
            import_pyarrow(text)
        folder = folder or (Path() if remote else path.parent)
        return cls(name=name, ending=ending, state=folder / path.name)

    @property
    def remote(self) -> bool:
        """Whether it is in an object store."""
        return stores.is_object(self.name)

    def part(self, part: Part) -> str:
        """The name of a finished part."""
        return f"{self.name}.part-{part.number}-of-{part.total}"

    def exists(self) -> bool:
        """Whether it is there, complete. Of a folder on this machine, any content counts."""
        if not self.remote:
            return taken(Path(self.name))
        return stores.exists(self.name if self.ending else f"{self.name}/{COMPLETE}")

    def check_free(self) -> None:
        """Checks that nothing is there.

        Raises:
            InputError: if something is.
        """
        if self.exists() or (self.remote and not self.ending and stores.any_below(self.name)):
            raise InputError(f"{self.name}: exists already; choose another OUT or remove it first")

    def write(self, rows: Iterator[Row], *, features: int | None, metadata: Mapping[str, Any]) -> None:
        """Writes all rows, at once or not at all: see `write_file`. In an object store, a folder ends with `COMPLETE`.

        Raises:
            InputError: if it cannot be written.
        """
        if self.remote:
            with draft_directory(self.state) as draft:
                if self.ending:
                    write_file(draft / "rows", rows, features, metadata, self.ending)
                    stores.upload(draft / "rows", self.name)
                    return
                write_folder(draft, rows, features, metadata)
                for file in sorted(draft.iterdir()):
                    stores.upload(file, f"{self.name}/{file.name}")
                (draft / COMPLETE).touch()
                stores.upload(draft / COMPLETE, f"{self.name}/{COMPLETE}")
        elif self.ending:
            with atomic_write(Path(self.name)) as file:
                write_file(file, rows, features, metadata, self.ending)
        else:
            with atomic_directory(Path(self.name)) as draft:
                write_folder(draft, rows, features, metadata)
