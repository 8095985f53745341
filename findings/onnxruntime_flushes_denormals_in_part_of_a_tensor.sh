#!/usr/bin/env bash
# In ONNX Runtime, `session.set_denormal_as_zero` of one session changes NumPy's answers in your thread, and in a second
# session it zeroes part of a tensor: the elements that a thread of the pool happens to compute.
#
# onnxruntime 1.32.0, onnx 1.23.0, numpy 2.4.6, x86-64, two threads in a session. The graph adds a denormal number to itself.
# - The first session of a process says what the calling thread does from then on, also outside ONNX Runtime: if it has "1",
#   NumPy's 1e-40 + 1e-40 becomes 0 in that thread and in threads that it starts. A later session with "0" does not undo that.
# - If the first session does not have it, a later one with "1" changes only the threads of its own pool. The calling thread
#   computes a share of each large operator too and keeps denormals, so that one output has both, in other places in each run.
#   Small operators, which the calling thread computes alone, are not changed at all.
# So whether the option holds depends on which session of the process was opened first, for example by another library.
#
# What to do: set it in every session or in none, from the first one on; do not compare answers of denormal size bit by bit.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet 'onnxruntime==1.32.0' 'onnx==1.23.0' 'numpy==2.4.6' 2>/dev/null
cat > "$work/sessions.py" <<'PYTHON'
import sys
import threading

import numpy as np
import onnxruntime
from onnx import TensorProto, helper

SMALL, LARGE = 1, 1 << 20
value = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"])
graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "sum", [value("x")], [value("y")])
MODEL = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()


def session(option):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    options.log_severity_level = 3
    options.add_session_config_entry("session.set_denormal_as_zero", option)
    return onnxruntime.InferenceSession(MODEL, options, providers=["CPUExecutionProvider"])


def zeros(opened, size):
    """The share of the sums that are zero."""
    return float((opened.run(None, {"x": np.full(size, 1e-40, np.float32)})[0] == 0).mean())


def numpy_zero():
    return bool((np.full(1, 1e-40, np.float32) * np.float32(2) == 0).all())


def in_a_thread(function):
    answers = []
    thread = threading.Thread(target=lambda: answers.append(function()))
    thread.start()
    thread.join()
    return answers[0]


def check(name, found, wanted):
    print(f"{name}: {found}")
    if not wanted:
        sys.exit(f"CHANGED: {name}")


print("onnxruntime", onnxruntime.__version__, "sessions", *sys.argv[1:])
check("NumPy flushes before", numpy_zero(), not numpy_zero())
first, second = map(session, sys.argv[1:])
if sys.argv[1] == "1":
    check("NumPy flushes", numpy_zero(), numpy_zero())
    check("NumPy flushes in a new thread", in_a_thread(numpy_zero), in_a_thread(numpy_zero))
    shares = [zeros(opened, size) for opened in (first, second) for size in (SMALL, LARGE)]
    check("zeros in session 1 (small, large) and 2", shares, shares == [1, 1, 1, 1])
else:
    check("NumPy flushes", numpy_zero(), not numpy_zero())
    check("zeros in a small sum", zeros(second, SMALL), zeros(second, SMALL) == 0)
    shares = [zeros(second, LARGE) for _ in range(40)]
    check("zeros in a large sum, several times", sorted(set(shares)), any(0 < share < 1 for share in shares))
PYTHON
"$work/venv/bin/python" "$work/sessions.py" 1 0
"$work/venv/bin/python" "$work/sessions.py" 0 1
echo 'As found: the first session decides for the calling thread, a later one for its own threads only.'
