#!/usr/bin/env bash
# huggingface_hub does not resume a download in a later run, and within a run it keeps only whole chunks of 10 MiB.
#
# huggingface_hub 2.4.0, without Xet (HF_HUB_DISABLE_XET=1). When a connection breaks, hf_hub_download asks again, up to five
# times, with a Range header from the last whole chunk of 10 MiB. What came after it is thrown away: after 19 MB, it asks
# for the bytes from 10,485,760 on, and after 9 MB for the whole file again. If the call fails or its process is killed,
# the next call starts from byte 0, because temporary names are unique to a call (older versions kept an .incomplete
# file). So a model of less than 10 MiB never resumes.
#
# What to do: fetch the file from https://huggingface.co/OWNER/NAME/resolve/REVISION/FILE with a client that resumes, and check
# its SHA-256, which is the ETag of an LFS file.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet 'huggingface-hub==2.4.0' 2>/dev/null
export HF_HOME="$work/cache" HF_HUB_DISABLE_XET=1 HF_HUB_DISABLE_TELEMETRY=1 HF_HUB_DISABLE_PROGRESS_BARS=1
"$work/venv/bin/python" - <<'PYTHON'
import hashlib
import http.server
import logging
import os
import sys
import threading

logging.disable(logging.WARNING)
MEGABYTE = 10**6
CONTENT = bytes(25 * MEGABYTE)
CUTS = []  # after how many bytes of an answer the connection breaks
RANGES = []


class Hub(http.server.BaseHTTPRequestHandler):
    def head(self):
        asked = self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").split("-")[0]) if asked else 0
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.send_header("ETag", f'"{hashlib.sha256(self.path.encode()).hexdigest()}"')
        self.send_header("X-Repo-Commit", "a" * 40)
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        return asked, start

    def do_HEAD(self):
        self.head()

    def do_GET(self):
        asked, start = self.head()
        RANGES.append(asked)
        stop = start + CUTS.pop(0) if CUTS else len(CONTENT)
        try:
            self.wfile.write(CONTENT[start:stop])
        except OSError:
            pass
        self.close_connection = True

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{server.server_port}"

import huggingface_hub

print("huggingface_hub", huggingface_hub.__version__)


def fetch(name, *cuts):
    """The Range headers of one call, and how it ended."""
    CUTS[:], RANGES[:] = cuts, []
    try:
        huggingface_hub.hf_hub_download("owner/name", name)
        end = "complete"
    except Exception as error:
        end = type(error).__name__
    print(f"{name}: connection broken after {[f'{cut / MEGABYTE:g} MB' for cut in cuts]}: Range {RANGES}, {end}")
    return list(RANGES), end


found = [
    fetch("a.bin", 9 * MEGABYTE),
    fetch("b.bin", 19 * MEGABYTE),
    fetch("c.bin", *[MEGABYTE] * 20),
    fetch("c.bin"),
]
first, second = (ranges for ranges, _ in found[:2])
if first != [None, None] or second[0] is not None or second[1] is None:
    sys.exit("CHANGED: resuming within a call differs")
kept = int(second[1].removeprefix("bytes=").split("-")[0])
print(f"kept {kept:,} of 19,000,000 bytes")
if kept >= 19 * MEGABYTE or found[2][1] == "complete" or found[3] != ([None], "complete"):
    sys.exit("CHANGED: what a call keeps differs")
PYTHON
