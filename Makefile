# `make demo` and `make test` work on a fresh machine with Python >= 3.10 and make.
PYTHON ?= python3
VENV ?= .venv
EXTRAS ?= test
RUN_DIR ?= runs/demo
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-$(EXTRAS)
# Spinning OpenMP barriers make two threads slower than one on a shared machine.
export OMP_WAIT_POLICY := passive
export NO_ALBUMENTATIONS_UPDATE := 1

.PHONY: demo test test-all lint install clean

install: $(STAMP)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "zoo needs Python 3.10 or newer: make PYTHON=python3.x"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[$(EXTRAS)]'
	@touch $@

demo: install
	$(BIN)/python -m zoo.demo --run $(RUN_DIR)

test: install
	$(BIN)/python -m pytest

test-all: install
	$(BIN)/python -m pytest -m "slow or not slow"

lint: install
	$(BIN)/python -m pip install --quiet '.[dev]' --no-build-isolation
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) runs predictions
