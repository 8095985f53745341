#!/usr/bin/env bash
# The commands of MNN's wheel, mnnconvert and mnnquant, run `pip install -U aliyun-log-python-sdk` where that package is missing, with
# the `pip` of the PATH, in whatever environment that is and without asking. Where it is there, each use fetches credentials for a log
# service from aliyuncs.com. The model is converted either way, and the status is 0.
#
# MNN 3.6.1. Seen below without a network: a `pip` that only notes its arguments, and stand-ins for the package and for the request. The
# report itself (machine identifier, options, sizes of the model) is then not sent in this version: the code that writes it imports a
# module that the wheel lacks, and its error is swallowed.
#
# What to do: in a build or an image that must not change, call the converter underneath, which does neither, with the same options:
# python -c "import sys, _tools; _tools.mnnconvert(sys.argv)"
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet 'MNN==3.6.1' 'onnx==1.23.2' 'numpy==2.4.6' 2>/dev/null
mkdir -p "$work/stubs" "$work/sdk/aliyun/log"
cat > "$work/stubs/pip" <<'SH'
#!/bin/sh
echo "$@" >> "$SEEN/pip"
SH
chmod +x "$work/stubs/pip"
touch "$work/sdk/aliyun/__init__.py"
cat > "$work/sdk/aliyun/log/__init__.py" <<'PYTHON'
import json
import os

from .logitem import LogItem


class PutLogsRequest:
    def __init__(self, *arguments, **named):
        self.items = next(value for value in (*arguments, *named.values()) if isinstance(value, list))


class LogClient:
    def __init__(self, *arguments): ...

    def put_logs(self, request):
        with open(os.environ["SEEN"] + "/log", "a") as file:
            for item in request.items:
                file.write(json.dumps(item.contents) + "\n")
PYTHON
cat > "$work/sdk/aliyun/log/logitem.py" <<'PYTHON'
class LogItem:
    def set_time(self, time): ...

    def set_contents(self, contents):
        self.contents = contents
PYTHON
cat > "$work/sdk/sitecustomize.py" <<'PYTHON'
import io
import json
import os
import urllib.request


def urlopen(request, *arguments, **named):
    with open(os.environ["SEEN"] + "/hosts", "a") as file:
        file.write(".".join(request.host.split(".")[-2:]) + "\n")
    keys = {"AccessKeyId": "", "AccessKeySecret": "", "SecurityToken": "", "Expiration": "2100-01-01T00:00:00Z"}
    return io.BytesIO(json.dumps({"Credentials": keys}).encode())


urllib.request.urlopen = urlopen
PYTHON
cat > "$work/model.py" <<'PYTHON'
import onnx
from onnx import TensorProto, helper

values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in "xy"]
graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", values[:1], values[1:])
onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), "model.onnx")
PYTHON
cat > "$work/check.py" <<'PYTHON'
import os
import pathlib
import sys


def check(name, found, wanted):
    print(f"{name}: {found}")
    if found != wanted:
        sys.exit(f"CHANGED: {name}")


def seen(folder, name):
    path = pathlib.Path(folder, name)
    return path.read_text().splitlines() if path.exists() else []


check("without the SDK, pip was asked to", sorted(set(seen("first", "pip"))), ["install -U aliyun-log-python-sdk"])
check("  the model was converted", os.path.getsize("first/model.mnn") > 0, True)
check("with the SDK, credentials come from", seen("second", "hosts"), ["aliyuncs.com"])
check("  reported", seen("second", "log"), [])
check("the converter underneath: pip and hosts", seen("third", "pip") + seen("third", "hosts"), [])
check("  the model was converted", os.path.getsize("third/model.mnn") > 0, True)
PYTHON
cd "$work"
venv/bin/python model.py
convert() { # the folder for what is seen, and the command
  mkdir "$1"
  SEEN="$work/$1" PATH="$work/stubs:$PATH" "${@:2}" -f ONNX --modelFile model.onnx --MNNModel "$1/model.mnn" --bizCode x > "$1/output" 2>&1
}
convert first venv/bin/mnnconvert
PYTHONPATH="$work/sdk" convert second venv/bin/mnnconvert
PYTHONPATH="$work/sdk" convert third venv/bin/python -c 'import sys, _tools; _tools.mnnconvert(sys.argv)'
venv/bin/python check.py
echo 'As found: mnnconvert runs pip install.'
