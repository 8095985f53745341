#!/usr/bin/env bash
# `bentoml build` advises a symbolic link for code outside of the build context, and then leaves linked folders out.
#
# BentoML 1.4.39. With `include: ["../lib/"]` the build refuses and says: "Paths outside of the build context directory
# cannot be included; use a symlink or copy those files". With the symbolic link that it asks for (lib -> ../lib) the
# build succeeds, prints no warning, and the Bento holds nothing of the folder: the tree is walked with `os.walk`, which
# lists a linked folder and does not enter it. A linked file is copied as the link itself, so in the Bento it points to
# where nothing is. Both show first when the Bento is served somewhere else.
#
# What to do: copy the folders into the build context before the build, or keep the code inside of it.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet 'bentoml==1.4.39' 'opentelemetry-api==1.45.1' 'opentelemetry-sdk==1.45.1' \
    'opentelemetry-semantic-conventions==0.66b1' 'opentelemetry-instrumentation==0.66b1' \
    'opentelemetry-instrumentation-asgi==0.66b1' 'opentelemetry-instrumentation-aiohttp-client==0.66b1' \
    'opentelemetry-util-http==0.66b1' 2>/dev/null
export BENTOML_HOME="$work/home" BENTOML_DO_NOT_TRACK=True
PATH="$work/venv/bin:$PATH"

mkdir -p "$work/lib" "$work/project"
echo 'ANSWER = 42' >"$work/lib/answer.py"
echo 'OTHER = 43' >"$work/other.py"
cd "$work/project"
cat >service.py <<'PYTHON'
import bentoml


@bentoml.service
class Echo:
    @bentoml.api
    def echo(self, text: str) -> str:
        return text
PYTHON
bentofile() { printf 'service: "service:Echo"\ninclude: ["*.py", "%s"]\npython: {lock_packages: false, packages: []}\n' "$1" >bentofile.yaml; }

bentofile '../lib/'
if bentoml build >"$work/refused" 2>&1; then echo 'CHANGED: a path outside of the context is accepted'; exit 1; fi
grep -q 'use a symlink' "$work/refused" || { echo 'CHANGED: the advice is another'; cat "$work/refused"; exit 1; }

ln -s ../lib lib
ln -s ../other.py other.py
bentofile 'lib/'
bentoml build --version v1 >"$work/built" 2>&1 || { echo 'CHANGED: links are refused'; cat "$work/built"; exit 1; }
packed="$work/home/bentos/echo/v1/src"
[ ! -e "$packed/lib" ] || { echo 'CHANGED: the linked folder is packed'; exit 1; }
[ -L "$packed/other.py" ] && [ ! -e "$packed/other.py" ] || { echo 'CHANGED: the linked file is packed otherwise'; exit 1; }
if grep -qi 'link' "$work/built"; then echo 'CHANGED: the build says something about links'; exit 1; fi
bentoml --version
echo 'As found: lib/ is missing from the Bento, other.py is a link to nothing, and the build said neither:'
(cd "$packed" && find . | sort)
