#!/usr/bin/env bash
# Little CMS darkens the shadows of a gray image with a linear profile by up to 10 of 255 levels: it interpolates the curve
# in a table that is too coarse there.
#
# Pillow 13.0.0 with Little CMS 2.19. A gray profile whose curve is the identity ("linear light"), converted to sRGB, has to follow
# sRGB's own curve: 1 of 255 becomes 12.7, 2 becomes 21.7. The default transform gives 6 and 12. cmsFLAGS_HIGHRESPRECALC, whose
# name promises more, leaves 7 and 15. cmsFLAGS_NOOPTIMIZE and a table of 255 points, cmsFLAGS_GRIDPOINTS(255), are right to half a level.
# Gray photographs that a raw converter or a scanner leaves in linear light lose their shadows this way.
#
# What to do: pass GRIDPOINTS(255) for gray profiles; the table has one dimension, so it costs nothing.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet 'pillow==13.0.0' 'numpy==2.4.6' 2>/dev/null
"$work/venv/bin/python" - <<'PYTHON'
import io
import struct
import sys

import numpy as np
import PIL
from PIL import Image, ImageCms, features

D50 = struct.pack(">iii", *(round(65536 * value) for value in (0.9642, 1, 0.8249)))


def linear_gray():
    """An ICC profile, version 2.4, for gray of which the value is the light."""
    tags = {
        b"desc": b"desc" + struct.pack(">II", 0, 12) + b"linear gray\0" + bytes(78),
        b"cprt": b"text" + bytes(4) + b"public domain\0",
        b"wtpt": b"XYZ " + bytes(4) + D50,
        b"kTRC": b"curv" + struct.pack(">II", 0, 0),  # no entries: the identity
    }
    table, body = struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        table += name + struct.pack(">II", 128 + 4 + 12 * len(tags) + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    size = 128 + len(table) + len(body)
    header = struct.pack(">I4sI4s4s4s6H4s", size, b"", 0x02400000, b"mntr", b"GRAY", b"XYZ ", 2026, 1, 1, 0, 0, 0, b"acsp")
    return header.ljust(68, b"\0") + D50 + bytes(48) + table + body


levels = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
light = np.arange(256) / 255
wanted = np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055) * 255
source = ImageCms.ImageCmsProfile(io.BytesIO(linear_gray()))
target = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
print("Pillow", PIL.__version__, "Little CMS", features.version("littlecms2"))
print("wanted            ", wanted[:6].round(1))
flags = ImageCms.Flags
for name, flag, right in (
    ("default", flags.NONE, False),
    ("HIGHRESPRECALC", flags.HIGHRESPRECALC, False),
    ("NOOPTIMIZE", flags.NOOPTIMIZE, True),
    ("GRIDPOINTS(255)", flags.GRIDPOINTS(255), True),
):
    transform = ImageCms.ImageCmsTransform(source, target, "L", "RGB", ImageCms.Intent.PERCEPTUAL, flags=flag)
    found = np.asarray(transform.apply(levels))[0, :, 1].astype(float)
    error = np.abs(found - wanted).max()
    print(f"{name:18}", found[:6], f"worst of all levels: {error:.1f}")
    if (error < 1) != right or (not right and error < 5):
        sys.exit("CHANGED: the error is another one")
PYTHON
echo 'As found: the shadows are up to 10 levels too dark by default.'
