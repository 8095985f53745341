"""The columns of a table: which one has the image, the label and the split."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence

from lipsformer.system.errors import InputError, suggest

__all__ = ["Columns", "find_columns", "has_labels", "image_column"]

# Usual names, the most telling first, compared in lower case and without separators.
USUAL = {
    "path": ("filename", "filepath", "path", "file", "imagepath", "imagefile", "imagefilename", "imgpath", "imgfile",
             "imagename", "image", "img", "images", "photo", "picture", "imageid"),
    "label": ("label", "class", "classname", "labelname", "category", "categoryname", "target", "species", "labels",
              "y"),
    "split": ("split", "subset", "partition", "set"),
}  # fmt: skip
BYTES = ("image", "img", "images", "bytes", "imagebytes", "imagedata", "content", "jpg", "png", "photo", "picture")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Columns:
    """Names of columns. `content` has the encoded images of a Parquet file, otherwise `path` names the files."""

    path: str | None
    label: str
    split: str | None
    group: str | None
    content: str | None = None

    def __str__(self) -> str:
        image = f"images from column '{self.content or self.path}'"
        split = f", splits from '{self.split}'" if self.split else ""
        return f"{image}, labels from '{self.label}'{split}"


def find_columns(
    where: object, names: Sequence[str], given: Mapping[str, str], group: str | None, binary: Collection[str] = ()
) -> Columns:
    """Finds the columns of a table by their usual names, or those `given` by role.

    Args:
        where: the table, for messages.
        names: its columns.
        given: columns by role.
        group: the column of groups, if it is one.
        binary: the columns that hold bytes.

    Raises:
        InputError: if a given column is missing, or none is found for the image or the label.
    """
    for role, name in given.items():
        if name not in names:
            raise InputError(f"{where}: --column {role}={name}: no such column; {suggest(name, names)}")
    found = {role: given.get(role) or _usual(names, USUAL[role], binary) for role in USUAL}
    content = given.get("path") if given.get("path") in binary else None
    if "path" not in given:
        content = _usual_bytes(binary)
    if found["label"] is None or (found["path"] is None and content is None):
        missing = "labels" if found["label"] is None else "images"
        listed = ", ".join(map(repr, names[:8])) + (", ..." if len(names) > 8 else "")
        raise InputError(
            f"{where}: no column of {missing} found among {listed}; "
            f"name it with --column {'label' if missing == 'labels' else 'path'}=NAME (the first row has the names)"
        )
    return Columns(
        path=None if found["path"] == content else found["path"],
        label=found["label"],
        split=found["split"],
        group=group if group in names else None,
        content=content,
    )


def image_column(where: object, names: Sequence[str], given: str | None, binary: Collection[str]) -> str:
    """The column of a table's images: the one `given`, or else one of bytes or paths by its usual name.

    Raises:
        InputError: if there is no such column.
    """
    if given is not None and given not in names:
        raise InputError(f"{where}: --column {given}: no such column; {suggest(given, names)}")
    found = given or _usual_bytes(binary) or _usual(names, USUAL["path"], binary)
    if found is None:
        raise InputError(f"{where}: no column of images found; name it with --column NAME ({suggest('image', names)})")
    return found


def has_labels(names: Sequence[str], given: Mapping[str, str]) -> bool:
    """Whether a table has a column of labels."""
    return given.get("label") in names or _usual(names, USUAL["label"]) is not None


def _usual_bytes(binary: Collection[str]) -> str | None:
    return _usual(binary, BYTES) or (next(iter(binary)) if len(binary) == 1 else None)


def _usual(names: Collection[str], usual: Sequence[str], without: Collection[str] = ()) -> str | None:
    plain = {"".join(filter(str.isalnum, name.lower())): name for name in reversed([*names]) if name not in without}
    return next((plain[name] for name in usual if name in plain), None)
