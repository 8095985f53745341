"""The center crop and its resize as an ONNX graph: images of any size in, the network's pixels out.

It computes what Pillow's `Image.resize(size, filter, box)` computes for 8-bit images, step by step: weights in double
precision, rounded to 22 bits after the point, then sums of integers, rounded to 8 bits after each of the two passes.
So the pixels are the same to the bit on any CPU, and in WebAssembly. ONNX's own Resize cannot do this: ONNX Runtime
ignores the size of a `roi` when it chooses the width of an antialiasing filter, and without a `roi` there are no crops
at fractions of a pixel.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import onnx
import PIL
from onnx import inliner, parser

from lipsformer.images.preprocessing import Preprocessing

__all__ = ["resize_graph"]

GROUP = 16  # neighboring outputs that share a window of the input: each window is one product of matrices

# From Pillow 13 on, columns are resized before rows if the height shrinks by more pixels than twice the width does.
# Pillow 12 always begins with the rows. The rounding in between makes the pixels differ.
LEAST_SHRINKAGE = 0 if int(PIL.__version__.partition(".")[0]) >= 13 else 2**62


class Filter(NamedTuple):
    """A filter's radius in output pixels, and its weight at the distance x >= 0."""

    radius: float
    weight: str


FILTERS = {
    "bilinear": Filter(
        1.0,
        """
  falling = Sub (one, x)
  weight = Max (falling, zero)""",
    ),
    "bicubic": Filter(  # a = -0.5
        2.0,
        """
  a = Constant <value = double {-0.5}> ()
  a_plus_2 = Constant <value = double {1.5}> ()
  a_plus_3 = Constant <value = double {2.5}> ()
  four = Constant <value = double {4.0}> ()
  five = Constant <value = double {5.0}> ()
  eight = Constant <value = double {8.0}> ()
  near_1 = Mul (a_plus_2, x)
  near_2 = Sub (near_1, a_plus_3)
  near_3 = Mul (near_2, x)
  near_4 = Mul (near_3, x)
  near = Add (near_4, one)
  far_1 = Sub (x, five)
  far_2 = Mul (far_1, x)
  far_3 = Add (far_2, eight)
  far_4 = Mul (far_3, x)
  far_5 = Sub (far_4, four)
  far = Mul (far_5, a)
  within_1 = Less (x, one)
  within_2 = Less (x, two)
  outer = Where (within_2, far, zero)
  weight = Where (within_1, near, outer)""",
    ),
}

# The types are 1 for float, 2 for uint8, 6 for int32, 7 for int64 and 11 for double.
GRAPH = """
<ir_version: %(ir_version)d, opset_import: ["" : %(opset)d, "local" : 1]>
resize (uint8[batch, height, width, 3] images) => (uint8[batch, %(size)d, %(size)d, 3] pixels)
{
  height = Shape <start = 1, end = 2> (images)
  width = Shape <start = 2, end = 3> (images)
  shorter = Min (height, width)
  shorter_double = Cast <to = 11> (shorter)
  size = Constant <value = double {%(size)d.0}> ()
  resized = Constant <value = double {%(resized)d.0}> ()
  enlarged = Mul (shorter_double, size)
  side = Div (enlarged, resized)
  top, bottom, y_starts, y_weights = local.windows (height, side)
  left, right, x_starts, x_weights = local.windows (width, side)
  low = Concat <axis = 0> (top, left)
  high = Concat <axis = 0> (bottom, right)
  axes = Constant <value = int64[2] {1, 2}> ()
  part = Slice (images, low, high, axes)
  size_int = Constant <value = int64[1] {%(size)d}> ()
  twice = Constant <value = int64[1] {2}> ()
  least = Constant <value = int64[1] {%(least)d}> ()
  less_height = Sub (height, size_int)
  less_width = Sub (width, size_int)
  twice_less_width = Mul (less_width, twice)
  bound = Max (twice_less_width, least)
  columns_first = Greater (less_height, bound)
  columns_first_scalar = Squeeze (columns_first)
  pixels = If (columns_first_scalar) <
    then_branch = columns_then_rows () => (pixels_then) {
      then_1 = Transpose <perm = [1, 0, 2, 3]> (part)
      then_2 = local.resize (then_1, y_starts, y_weights)
      then_3 = Transpose <perm = [2, 1, 0, 3]> (then_2)
      then_4 = local.resize (then_3, x_starts, x_weights)
      pixels_then = Transpose <perm = [1, 2, 0, 3]> (then_4)
    },
    else_branch = rows_then_columns () => (pixels_else) {
      else_1 = Transpose <perm = [2, 0, 1, 3]> (part)
      else_2 = local.resize (else_1, x_starts, x_weights)
      else_3 = Transpose <perm = [2, 1, 0, 3]> (else_2)
      else_4 = local.resize (else_3, y_starts, y_weights)
      pixels_else = Transpose <perm = [1, 0, 2, 3]> (else_4)
    }
  >
}
"""

# Along one axis: which part of the image is used [start, end), where in it the window of each group of outputs starts,
# and the weights in units of 2^-22 as three bytes (groups, 3 * group, taps), each with the zero point 128.
WINDOWS = """
<opset_import: ["" : %(opset)d], domain: "local">
windows (length, side) => (start, end, starts, weights)
{
  n = Cast <to = 11> (length)
  zero = Constant <value = double {0.0}> ()
  half = Constant <value = double {0.5}> ()
  one = Constant <value = double {1.0}> ()
  two = Constant <value = double {2.0}> ()
  spare = Sub (n, side)
  low_double = Div (spare, two)
  high_double = Add (low_double, side)
  low_float = Cast <to = 1> (low_double)
  high_float = Cast <to = 1> (high_double)
  extent_float = Sub (high_float, low_float)
  low = Cast <to = 11> (low_float)
  extent = Cast <to = 11> (extent_float)
  size = Constant <value = double {%(size)d.0}> ()
  scale = Div (extent, size)
  stretch = Max (scale, one)
  sharpness = Div (one, stretch)
  radius = Constant <value = double {%(radius).1f}> ()
  support = Mul (stretch, radius)
  outputs = Constant <value = double[%(groups)d, %(group)d, 1] {%(middles)s}> ()
  offsets = Mul (outputs, scale)
  centers = Add (low, offsets)
  lowest_1 = Sub (centers, support)
  lowest_2 = Add (lowest_1, half)
  lowest_3 = Floor (lowest_2)
  highest_1 = Add (centers, support)
  highest_2 = Add (highest_1, half)
  highest_3 = Floor (highest_2)
  of_group = Constant <value = int64[2] {1, 2}> ()
  lowest = ReduceMin (lowest_3, of_group)
  highest = ReduceMax (highest_3, of_group)
  firsts = Max (lowest, zero)
  lasts = Min (highest, n)
  lengths = Sub (lasts, firsts)
  longest = ReduceMax <keepdims = 0> (lengths)
  taps = Cast <to = 7> (longest)
  zero_int = Constant <value = int64 {0}> ()
  one_int = Constant <value = int64 {1}> ()
  range = Range (zero_int, taps, one_int)
  range_double = Cast <to = 11> (range)
  positions = Add (firsts, range_double)
  distances_1 = Sub (positions, centers)
  distances_2 = Add (distances_1, half)
  distances = Mul (distances_2, sharpness)
  x = Abs (distances)%(weight)s
  inside = Less (positions, n)
  kept = Where (inside, weight, zero)
  of_output = Constant <value = int64[1] {2}> ()
  total = ReduceSum (kept, of_output)
  shares = Div (kept, total)
  unit = Constant <value = double {4194304.0}> ()
  fixed_1 = Mul (shares, unit)
  fixed_2 = Abs (fixed_1)
  fixed_3 = Add (fixed_2, half)
  fixed_4 = Floor (fixed_3)
  signs = Sign (shares)
  fixed_5 = Mul (fixed_4, signs)
  zero_points = Constant <value = double {8421504.0}> ()
  fixed_6 = Add (fixed_5, zero_points)
  fixed = Cast <to = 7> (fixed_6)
  base = Constant <value = int64 {256}> ()
  byte_0 = Mod (fixed, base)
  rest = Div (fixed, base)
  byte_1 = Mod (rest, base)
  byte_2 = Div (rest, base)
  bytes = Concat <axis = 1> (byte_0, byte_1, byte_2)
  weights = Cast <to = 2> (bytes)
  flat = Constant <value = int64[1] {-1}> ()
  firsts_int = Cast <to = 7> (firsts)
  firsts_flat = Reshape (firsts_int, flat)
  start = ReduceMin (firsts_flat)
  lasts_int = Cast <to = 7> (lasts)
  lasts_flat = Reshape (lasts_int, flat)
  end = ReduceMax (lasts_flat)
  starts = Sub (firsts_flat, start)
}
"""

# Resizes the first axis of uint8 (length, ...).
RESIZE = """
<opset_import: ["" : %(opset)d], domain: "local">
resize (x, starts, weights) => (y)
{
  length = Shape <start = 0, end = 1> (x)
  others = Shape <start = 1> (x)
  flat = Constant <value = int64[2] {0, -1}> ()
  x_flat = Reshape (x, flat)
  taps_1 = Shape <start = 2, end = 3> (weights)
  taps = Squeeze (taps_1)
  zero_int = Constant <value = int64 {0}> ()
  one_int = Constant <value = int64 {1}> ()
  range = Range (zero_int, taps, one_int)
  ones = Constant <value = int64[1] {1}> ()
  starts_column = Unsqueeze (starts, ones)
  index = Add (starts_column, range)
  last = Sub (length, ones)
  index_inside = Min (index, last)
  windows = Gather <axis = 0> (x_flat, index_inside)
  zero_point = Constant <value = uint8 {128}> ()
  sums = MatMulInteger (weights, windows, zero_point)
  sum_0, sum_1, sum_2 = Split <axis = 1, num_outputs = 3> (sums)
  base = Constant <value = int32 {256}> ()
  total_1 = Mul (sum_2, base)
  total_2 = Add (total_1, sum_1)
  total_3 = Mul (total_2, base)
  total = Add (total_3, sum_0)
  half = Constant <value = int32 {2097152}> ()
  unit = Constant <value = int32 {4194304}> ()
  level_1 = Add (total, half)
  level_2 = Div (level_1, unit)
  black = Constant <value = int32 {0}> ()
  white = Constant <value = int32 {255}> ()
  level_3 = Clip (level_2, black, white)
  level = Cast <to = 2> (level_3)
  size = Constant <value = int64[1] {%(size)d}> ()
  shape = Concat <axis = 0> (size, others)
  y = Reshape (level, shape)
}
"""


def resize_graph(preprocessing: Preprocessing, *, opset: int, ir_version: int) -> onnx.ModelProto:
    """The graph from `images`, uint8 RGB (batch, H, W, 3) of any size, to `pixels`, uint8 (batch, S, S, 3).

    It covers everything that `Preprocessing` does to an upright, opaque 8-bit image in sRGB.
    """
    size = preprocessing.image_size
    group = math.gcd(size, GROUP)
    chosen = FILTERS[preprocessing.interpolation]
    text = (GRAPH + WINDOWS + RESIZE) % {
        "ir_version": ir_version,
        "opset": opset,
        "size": size,
        "resized": round(size / preprocessing.crop_pct),
        "least": LEAST_SHRINKAGE,
        "groups": size // group,
        "group": group,
        "middles": ", ".join(str(output + 0.5) for output in range(size)),
        "radius": chosen.radius,
        "weight": chosen.weight,
    }
    return inliner.inline_local_functions(parser.parse_model(text))
