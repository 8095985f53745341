#!/usr/bin/env bash
# pillow-jxl-plugin saves a JPEG that was edited in place as it lies on the disk: thumbnails come out in full size, and what
# was painted over is back.
#
# pillow-jxl-plugin 1.3.8, Pillow 13.0.0. `thumbnail`, `paste`, ImageDraw and `exif_transpose(in_place=True)` change an image that
# remembers its `format` and `filename`. If these say that it was opened from a JPEG file, `save("photo.jxl")` reads that file
# again and recompresses it without loss, whatever the pixels are now. It does so by default, without `lossless=True` too. Its
# warning, "Using JPEG reconstruction to create lossless JXL image from JPEG", does not say that the edits are gone. The same
# edits are in the file if the image was opened from bytes, was copied, or is saved in another format.
# Faces or license plates that were painted over are readable in such a JXL.
#
# What to do: save `image.copy()`, or pass lossless_jpeg=False.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet 'pillow==13.0.0' 'pillow-jxl-plugin==1.3.8' 'numpy==2.4.6' 2>/dev/null
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import sys
import warnings
from importlib.metadata import version

import numpy as np
import pillow_jxl  # noqa: F401 - registers the format
from PIL import Image, ImageDraw

print("pillow-jxl-plugin", version("pillow-jxl-plugin"), "Pillow", version("pillow"))
Image.linear_gradient("L").convert("RGB").save("photo.jpg", quality=95)


def thumbnail(image):
    image.thumbnail((64, 64))


def black_box(image):
    ImageDraw.Draw(image).rectangle((100, 100, 200, 200), fill="black")


def saved(edit, copied=False, **options):
    """The edited image, what became of it as JPEG XL, and the warnings."""
    image = Image.open("photo.jpg")
    edit(image)
    with warnings.catch_warnings(record=True) as messages:
        warnings.simplefilter("always")
        (image.copy() if copied else image).save("photo.jxl", **options)
    with Image.open("photo.jxl") as found:
        return np.asarray(image), np.asarray(found.convert("RGB")), [str(one.message) for one in messages]


original = np.asarray(Image.open("photo.jpg"))
for edit in (thumbnail, black_box):
    for how in ({}, {"lossless": True}, {"copied": True}, {"lossless_jpeg": False}):
        wanted, found, messages = saved(edit, **how)
        lost = np.array_equal(found, original)
        near = found.shape == wanted.shape and np.abs(found.astype(int) - wanted).mean() < 3
        print(f"{edit.__name__}, {how or 'default'}: {found.shape[1]} x {found.shape[0]}, {'the original' if lost else 'edited'}")
        if lost != (how in ({}, {"lossless": True})) or lost == near:
            sys.exit("CHANGED: other images are saved")
        if any("edit" in message or "pixels" in message for message in messages):
            sys.exit(f"CHANGED: the warning is another: {messages}")
PYTHON
echo 'As found: by default the original photo is saved.'
