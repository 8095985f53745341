# `make quickstart` runs the whole pipeline on real photos, `make test` all checks and tests, `make docs` builds the website
# in build/site. All of them set up .venv first.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin
PAGES := README.md CONTRIBUTING.md CHANGELOG.md docs benchmarks train/recipes lipsformer/checkpoints/weights

.PHONY: quickstart test check docs

quickstart: $(VENV)/installed
	$(RUN)/python examples/quickstart.py $(QUICKSTART)

test: check
	$(RUN)/python -m pytest -m 'not openvino'
	$(RUN)/python -m pytest -m openvino

check: $(VENV)/installed
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy

# The pages keep their places in the tree, so that a link that works on GitHub works on the site too.
# Without --quiet, which would silence the warnings that `strict` counts.
docs: $(VENV)/installed
	rm -rf build/pages
	mkdir -p build/pages
	tar -cf - --exclude '*.safetensors' --exclude '*.py' --exclude '*.json' --exclude results $(PAGES) | tar -xf - -C build/pages
	NO_MKDOCS_2_WARNING=1 $(RUN)/mkdocs build

# ONNX Runtime for browsers is for the tests of the page without a server, which are skipped without npm.
# timm and its torchvision lie in a folder that one test adds to its path: next to the CPU build of PyTorch, PyPI's
# torchvision breaks what imports it if present, such as torchmetrics.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN)/python -m pip install --quiet --constraint constraints.txt --editable '.[cpu,data,dev,docs]'
	$(RUN)/python -m pip install --quiet --constraint constraints.txt --no-deps --upgrade --target $(VENV)/timm timm torchvision
	cd $(VENV) && (npm pack --silent onnxruntime-web@1.30.0 || echo "npm cannot fetch onnxruntime-web: tests of the page without a server will be skipped" >&2)
	touch $@
