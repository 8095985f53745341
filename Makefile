# `make quickstart` runs the whole pipeline on real photos, `make test` all checks and tests, `make docs` builds the website
# in build/site. All of them set up .venv first.

# Where this variable is set, each of the thousands of processes of the tests would compile all of PyTorch again.
export PYTHONDONTWRITEBYTECODE :=

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin
PIP := $(RUN)/python -m pip install --quiet --no-compile --constraint constraints.txt
PAGES := README.md CONTRIBUTING.md CHANGELOG.md docs benchmarks train/recipes lipsformer/checkpoints/weights

.PHONY: quickstart test check docs

quickstart: $(VENV)/installed
	$(RUN)/python examples/quickstart.py $(QUICKSTART)

test: check
	$(RUN)/python -m pytest -m 'not openvino'
	$(RUN)/python -m pytest -m openvino $$(grep -rlF mark.openvino tests --include='test_*.py')

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

# The libraries with --target lie in folders that single tests add to their path. Next to the CPU build of PyTorch, timm's
# torchvision breaks what imports it if present, such as torchmetrics. Of MLServer only the types are used. Trackio requires
# a Pillow older than 13. ONNX Runtime for browsers is for the tests of the page without a server, which are skipped without
# npm. Python compiles a module when it is first imported: compiling all of them took a third of the installation's time.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[cpu,dev,docs]'
	$(PIP) --no-deps --upgrade --target $(VENV)/timm timm torchvision
	$(PIP) --no-deps --upgrade --target $(VENV)/mlserver mlserver
	$(PIP) --no-deps --upgrade --target $(VENV)/trackio trackio brotli gradio-client orjson
	cd $(VENV) && (npm pack --silent onnxruntime-web@1.30.0 || echo "npm cannot fetch onnxruntime-web: tests of the page without a server will be skipped" >&2)
	touch $@
