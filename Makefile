# No set-up is needed: the first use of a target makes .venv and installs what it needs.

PYTHON ?= $(or $(shell command -v python3.11),python3)
BIN := .venv/bin
READY := .venv/.ready
TRAIN := $(if $(wildcard $(READY)),$(READY),.venv/.train)
PYTEST := $(BIN)/pytest -n auto --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help demo test test-all lint format docs

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(TRAIN)  ## train both networks on handwritten digits, load them again and measure them
	@run=runs/demo-$$(date +%Y%m%d-%H%M%S) && set -x && \
	$(BIN)/adjoined train --recipe digits --run $$run && \
	$(BIN)/adjoined evaluate $$run

test: $(READY)  ## run the fast tests (ARGS="-k NAME" for some of them)
	$(PYTEST) --no-loadscope-reorder -m "not slow" $(ARGS)

test-all: $(READY)  ## run all tests
	$(PYTEST) $(ARGS)

lint: $(READY)  ## check style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(READY)  ## format the files
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY)  ## build the documentation into build/docs; warnings are errors
	$(BIN)/python -m sphinx -b html -q -W --keep-going docs build/docs
	@echo "build/docs/index.html"

# The stamp comes last: an installation that broke off is done again.
$(READY): EXTRA := dev
.venv/.train: EXTRA := train
$(READY) .venv/.train: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo 'Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11 ...' >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRA)]'
	@touch $@
