#!/usr/bin/env bash
# Importing OpenVINO or ONNX Runtime on Linux writes a random identifier of the user into the home folder.
#
# openvino 2026.4.1 (with openvino-telemetry, which it installs), onnxruntime 1.32.0, x86-64, an empty home folder.
# - `import openvino` leaves ~/intel/openvino_ga_cid and ~/intel/stats, the client id and the consent of its usage
#   statistics, before any model is read. No message says so. Without openvino-telemetry the import works and leaves nothing.
# - `import onnxruntime` leaves ~/.cache/Microsoft/DeveloperTools/.onnxruntime/deviceid and a database next to it.
#   With ORT_DISABLE_TELEMETRY=1 in the environment before the import it leaves nothing.
#
# What to do: in images that you ship, uninstall openvino-telemetry, or set sys.modules["openvino_telemetry"] = None before
# the import; set ORT_DISABLE_TELEMETRY=1.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet 'openvino==2026.4.1' 'onnxruntime==1.32.0' 2>/dev/null

# The files in a new home folder after a program, one per line; CI variables would change what OpenVINO does.
written_by() {
    local home
    home=$(mktemp -d "$work/home.XXXXXX")
    env -i HOME="$home" PATH="$PATH" "${@:2}" "$work/venv/bin/python" -c "$1"
    sleep 5 # the events are sent, and written, by other processes and threads
    (cd "$home" && find . -type f | sort)
}

check() {
    printf '%s:\n%s\n' "$1" "${2:-nothing}"
    [ "$2" = "$3" ] || { echo "CHANGED: $1" >&2; exit 1; }
}

folder=./.cache/Microsoft/DeveloperTools/.onnxruntime
check 'import openvino' "$(written_by 'import openvino')" "$(printf './intel/openvino_ga_cid\n./intel/stats')"
check 'import openvino without telemetry' \
    "$(written_by 'import sys; sys.modules["openvino_telemetry"] = None; import openvino')" ''
check 'import onnxruntime' "$(written_by 'import onnxruntime' | grep deviceid)" "$folder/deviceid"
check 'import onnxruntime with ORT_DISABLE_TELEMETRY=1' "$(written_by 'import onnxruntime' ORT_DISABLE_TELEMETRY=1)" ''
echo 'As found: both write an identifier when imported, unless they are told not to.'
