#!/usr/bin/env bash
# Pillow reads big-endian TIFFs of signed or floating-point values as noise if they are compressed, and planar 16-bit color
# if it is not. It raises nothing.
#
# Pillow 13.0.0 (libtiff 4.7.2), tifffile 2026.3.3 on a little-endian machine.
# - Deflate, "MM" byte order, int16, int32 or float32: 1 becomes 256, 16777216 or 4.6e-41. libtiff already gives the values in
#   the machine's order, and Pillow swaps their bytes again. uint16 is right, and so are all types without compression and all
#   little-endian files. ImageJ and other Java programs write big-endian TIFFs.
# - RGB of 16 bits in separate planes, uncompressed: the image of upper bytes that Pillow gives of 16-bit color has the lower
#   bytes and the neighbors mixed in. With Deflate the same image is right.
#
# What to do: compare with tifffile, or save such files little-endian and interleaved.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet 'pillow==13.0.0' 'tifffile==2026.3.3' 'numpy==2.4.6' 2>/dev/null
"$work/venv/bin/python" - <<'PYTHON'
import io
import sys

import numpy as np
import PIL
import tifffile
from PIL import Image, features


def read(values, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, values, **options)
    file.seek(0)
    assert np.array_equal(tifffile.imread(file), values)
    return np.asarray(Image.open(file))


print("Pillow", PIL.__version__, "libtiff", features.version("libtiff"), "tifffile", tifffile.__version__)
failed = []
for kind in ("u2", "i2", "i4", "f4"):
    values = (np.arange(12).reshape(3, 4) * 100 + 1).astype(kind)
    for order in "<>":
        for compression in (None, "zlib"):
            found = read(values, byteorder=order, compression=compression, photometric="minisblack")
            if not np.array_equal(found, values):
                failed.append((kind, order, compression))
                print(f"{kind}, order {order}, {compression}: {values.flat[0]} is read as {found.flat[0]}")
if failed != [(kind, ">", "zlib") for kind in ("i2", "i4", "f4")]:
    sys.exit("CHANGED: other types are wrong")

planes = (np.arange(36).reshape(3, 3, 4) * 1000).astype("u2")
upper = (planes >> 8).transpose(1, 2, 0)
for compression, right in ((None, False), ("zlib", True)):
    found = read(planes, planarconfig="separate", photometric="rgb", compression=compression)
    print(f"planes, {compression}: upper bytes of red {upper[0, :, 0]}, read {found[0, :, 0]}")
    if np.array_equal(found, upper) != right:
        sys.exit("CHANGED: planes are read otherwise")
PYTHON
echo 'As found: three types of compressed big-endian TIFFs and uncompressed planes are read as noise.'
