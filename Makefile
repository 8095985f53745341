# Two commands: `make quickstart` shows the whole road on real photos, `make test` proves it. Both do all the set-up.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin

.PHONY: quickstart test check

quickstart: $(VENV)/installed
	$(RUN)/python examples/quickstart.py $(QUICKSTART)

test: check
	$(RUN)/python -m pytest

check: $(VENV)/installed
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN)/python -m pip install --quiet --constraint constraints.txt --editable '.[cpu,data,dev]'
	touch $@
