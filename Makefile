# `make demo` and `make test` are the only set-up: the first use of either makes .venv and installs into it.

PYTHON ?= $(or $(shell command -v python3.11),python3)
BIN := .venv/bin
READY := .venv/.ready
PYTEST := $(BIN)/pytest -n auto --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help demo test test-all lint format docs

help:  ## say what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(READY)  ## train on the embedded digits, print the result, load both networks again and measure them
	@run=runs/demo-$$(date +%Y%m%d-%H%M%S) && set -x && \
	$(BIN)/adjoined train --recipe digits --run $$run && \
	$(BIN)/adjoined evaluate $$run

test: $(READY)  ## run the tests but the slow ones (ARGS="-k name" for some of them)
	$(PYTEST) -m "not slow" $(ARGS)

test-all: $(READY)  ## run all tests
	$(PYTEST) $(ARGS)

lint: $(READY)  ## check style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(READY)  ## put the files into the format that lint asks for
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY)  ## build the documentation into build/docs; warnings are errors
	$(BIN)/python -m sphinx -b html -q -W --keep-going docs build/docs
	@echo "build/docs/index.html"

# The stamp comes last: an installation that broke off is done again.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo 'Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11 ...' >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
