#!/usr/bin/env bash
# The same Image.resize gives other pixels in Pillow 13 than in Pillow 12 if the image is tall.
#
# Pillow 12.3.0 and 13.0.0. A resize has two passes with a rounding to 8 bits in between. Pillow 12 always begins with the rows.
# Pillow 13 begins with the columns if the height shrinks by more than twice as many pixels as the width does: 300 x 900 to
# 224 x 224 is such a resize, 900 x 300 is none. Of noise, 22% of the pixels differ, by up to 5 levels.
# Wide images are the same to the bit.
#
# What to do: record Pillow's version with a model, as with any package that its answers depend on; a port of the resize has to
# repeat the order of the passes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
for version in 12.3.0 13.0.0; do
    "$work/venv/bin/pip" install --quiet --no-deps --target "$work/$version" "pillow==$version" 2>/dev/null
    PYTHONPATH="$work/$version" "$work/venv/bin/python" - "$work/$version.bin" <<'PYTHON'
import random
import sys

from PIL import Image

noise = random.Random(0).randbytes(300 * 900)
with open(sys.argv[1], "wb") as file:
    for size in ((300, 900), (900, 300)):
        file.write(Image.frombytes("L", size, noise).resize((224, 224), Image.Resampling.BICUBIC).tobytes())
PYTHON
done
python3 - "$work/12.3.0.bin" "$work/13.0.0.bin" <<'PYTHON'
import sys
from pathlib import Path

old, new = (Path(path).read_bytes() for path in sys.argv[1:])
found = []
for title, part in (("300 x 900", slice(0, 224 * 224)), ("900 x 300", slice(224 * 224, None))):
    differences = [abs(a - b) for a, b in zip(old[part], new[part])]
    found.append(max(differences))
    share = sum(difference > 0 for difference in differences) / len(differences)
    print(f"{title} to 224 x 224: {share:.1%} of the pixels differ, by up to {max(differences)} levels")
if not (found[0] > 2 and found[1] == 0):
    sys.exit("CHANGED: tall images are resized alike, or others are not")
PYTHON
echo 'As found: Pillow 13 resizes a tall image to other pixels than Pillow 12, and a wide one to the same.'
