"""The state of a bulk prediction: one SQLite file with the images as listed and a row for each that is done.

SQLite's write-ahead log keeps it consistent whatever kills the process. A power loss may cost the last blocks, which
are then computed again.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from lipsformer.system.errors import InputError

from .rows import OK, Row, text
from .sources import ListedImage

__all__ = ["BulkState"]

APPLICATION = 0x4C697073  # marks the file as one of ours
PRAGMAS = (
    "PRAGMA locking_mode = EXCLUSIVE",
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = NORMAL",
    "PRAGMA cache_size = -512",  # KiB: rows are read and written in order
)
COLUMNS = (
    "position INTEGER PRIMARY KEY", "name BLOB NOT NULL", "file BLOB NOT NULL", "offset INTEGER", "size INTEGER",
    "status TEXT", "detail TEXT", "top_k TEXT", "accepted INTEGER", "certified_radius REAL", "width INTEGER",
    "height INTEGER", "features BLOB",
)  # fmt: skip
TABLES = (
    f"PRAGMA application_id = {APPLICATION}",
    "CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    f"CREATE TABLE images ({', '.join(COLUMNS)})",
)
CHANGED, START_AGAIN = "the images have changed", "remove this file to start from the beginning"
RESULTS = "status, detail, top_k, accepted, certified_radius, width, height, features"


class BulkState:
    """An open state file, which no other process can open meanwhile. Use it in a `with` block, in one thread.

    `facts` are the settings that it was begun with, as plain data. Messages call it `name`, by default its path.
    """

    def __init__(self, path: Path, name: str | None = None) -> None:
        self.path, self.name = path, name or str(path)
        try:
            self._database = sqlite3.connect(path, timeout=0, isolation_level=None)
            new = self._one("SELECT count(*) FROM sqlite_master") == 0
            if not new and self._one("PRAGMA application_id") != APPLICATION:
                raise sqlite3.DatabaseError("another program's file")
            for pragma in PRAGMAS:
                self._database.execute(pragma)
            with self._database:
                self._database.execute("BEGIN IMMEDIATE")  # takes the lock
                for statement in TABLES if new else ():
                    self._database.execute(statement)
            self.facts: dict[str, Any] = {
                name: json.loads(value) for name, value in self._database.execute("SELECT * FROM facts")
            }
        except sqlite3.OperationalError as error:
            raise InputError(_unusable(self.name, error)) from None
        except sqlite3.DatabaseError as error:
            raise InputError(f"{self.name}: not a usable state ({error}); {START_AGAIN}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def remember(self, facts: Mapping[str, Any]) -> None:
        """Adds facts, plain data, to those that the state has."""
        with self._transaction():
            self._database.executemany(
                "INSERT OR REPLACE INTO facts VALUES (?, ?)", [(name, json.dumps(fact)) for name, fact in facts.items()]
            )
        self.facts.update(facts)

    @property
    def total(self) -> int | None:
        """The number of images in all parts; None while they are being listed."""
        return self.facts.get("total")

    @property
    def finished(self) -> bool:
        """Whether all its images have their rows."""
        return bool(self.facts.get("finished"))

    def end_listing(self, total: int, sha256: str) -> None:
        """Records that all images were listed: their number in all parts, and a hash of their names.

        Raises:
            InputError: if more were listed before.
        """
        last = self._one("SELECT max(position) FROM images")
        if last is not None and last >= total:
            raise InputError(f"{self.name}: {CHANGED}: there are only {total:,} now; {START_AGAIN}")
        self.remember({"total": total, "listing_sha256": sha256})

    def add(self, images: Sequence[tuple[int, ListedImage]]) -> int:
        """Adds listed images at their positions, and returns how many of the new ones are refused.

        Raises:
            InputError: if another image was listed at a position before.
        """
        if not images:
            return 0
        known = dict(
            self._database.execute(
                "SELECT position, name FROM images WHERE position BETWEEN ? AND ?", (images[0][0], images[-1][0])
            )
        )
        new = []
        for position, image in images:
            name = os.fsencode(image.name)
            if known.get(position, name) != name:
                raise InputError(
                    f"{self.name}: {CHANGED}: {image.name} is where {os.fsdecode(known[position])} was; {START_AGAIN}"
                )
            status, detail = image.refusal or (None, None)
            offset, size = image.part or (None, None)
            if position not in known:
                new.append((position, name, os.fsencode(image.file), offset, size, status, detail))
        with self._transaction():
            self._database.executemany(
                "INSERT INTO images (position, name, file, offset, size, status, detail) VALUES (?, ?, ?, ?, ?, ?, ?)",
                new,
            )
        return sum(status is not None for *_, status, _ in new)

    def unfinished(self, start: int, end: int) -> list[tuple[int, ListedImage]]:
        """The images at positions from `start` up to `end` that have no result yet."""
        found = self._database.execute(
            "SELECT position, name, file, offset, size FROM images "
            "WHERE position >= ? AND position < ? AND status IS NULL ORDER BY position",
            (start, end),
        )
        return [(position, _listed(*columns)) for position, *columns in found]

    def commit(self, rows: Iterable[tuple[int, Row]]) -> None:
        """Saves the results of images by position, all or none."""
        columns = ", ".join(f"{name.strip()} = ?" for name in RESULTS.split(","))
        with self._transaction():
            self._database.executemany(
                f"UPDATE images SET {columns} WHERE position = ?",  # noqa: S608 - our own names
                [
                    (row.status, row.detail, json.dumps(row.top_k) if row.top_k else None, row.accepted,
                     row.certified_radius, row.width, row.height, row.features, position)
                    for position, row in rows
                ],
            )  # fmt: skip

    def counts(self) -> Counter[str]:
        """The number of finished images by status."""
        return Counter(
            dict(self._database.execute("SELECT status, count(*) FROM images WHERE status NOT NULL GROUP BY status"))
        )

    def failures(self) -> int:
        """The number of refused images."""
        counts = self.counts()
        return counts.total() - counts[OK]

    def channels(self) -> int | None:
        """The number of features of an image; None if no row has any."""
        size = self._one("SELECT length(features) FROM images WHERE features NOT NULL LIMIT 1")
        return None if size is None else int(size) // 4

    def rows(self) -> Iterator[tuple[int, Row]]:
        """All positions with their rows, in order; all images must be finished."""
        found = self._database.execute(f"SELECT position, name, {RESULTS} FROM images ORDER BY position")  # noqa: S608
        for position, name, status, detail, top_k, accepted, certified_radius, width, height, features in found:
            yield (
                position,
                Row(
                    name=text(os.fsdecode(name)),
                    status=status,
                    detail=detail,
                    top_k=tuple(json.loads(top_k)) if top_k else (),
                    accepted=None if accepted is None else bool(accepted),
                    certified_radius=certified_radius,
                    width=width,
                    height=height,
                    features=features,
                ),
            )

    def images(self) -> Iterator[ListedImage]:
        """All images as listed, in the order of `rows`."""
        found = self._database.execute("SELECT name, file, offset, size FROM images ORDER BY position")
        for columns in found:
            yield _listed(*columns)

    def take(self, part: BulkState) -> None:
        """Adds the images and rows of a part, and the facts of the first one."""
        places = ", ".join("?" * len(COLUMNS))
        with self._transaction():
            found = part._database.execute("SELECT * FROM images")
            self._database.executemany(f"INSERT INTO images VALUES ({places})", found)  # noqa: S608
        if not self.facts:
            self.remember(part.facts)

    def flush(self) -> None:
        """Writes everything into the file itself."""
        self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def remove(self) -> None:
        """Closes and removes the file."""
        self._database.close()
        for ending in ("-wal", "-shm", ""):
            Path(f"{self.path}{ending}").unlink(missing_ok=True)

    def _one(self, query: str) -> Any:
        found = self._database.execute(query).fetchone()
        return None if found is None else found[0]

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            with self._database:
                self._database.execute("BEGIN IMMEDIATE")
                yield
        except sqlite3.OperationalError as error:
            raise InputError(_unusable(self.name, error)) from None


def _listed(name: bytes, file: bytes, offset: int | None, size: int | None) -> ListedImage:
    part = None if offset is None or size is None else (offset, size)
    return ListedImage(name=os.fsdecode(name), file=os.fsdecode(file), part=part)


def _unusable(name: str, error: sqlite3.OperationalError) -> str:
    if "locked" in str(error):
        return f"{name}: another process is working on it; wait for it, or choose another --output"
    return f"{name}: cannot be written ({error}); check the path, its permissions and the free space"
