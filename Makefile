# `make quickstart` and `make test` do everything on a fresh machine with Python ≥ 3.11, git and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
BENCH := .venv-bench
BENCH_STAMP := $(BENCH)/.installed
PEERS := benchmarks/peers/requirements.txt

.PHONY: install quickstart test test-slow bench-env lint format docs clean

install: $(STAMP)

# torch first, so that nothing installed after it asks for another build.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "overtone needs Python 3.11 or newer; say make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

quickstart: install
	$(BIN)/overtone quickstart

# Tests share the cores as processes of one thread each: small as they are, threads would mostly wait for one another.
test: install lint
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --maxprocesses 8 --dist worksteal

test-slow: install
	$(BIN)/pytest -m slow

# The libraries that benchmarks/step.py and store_peers.py compare with, apart from what overtone is developed in: their
# requirements are others (and a Python below 3.13, for overcomplete). They get the same torch, whose pin is in constraints.txt alone.
bench-env: $(BENCH_STAMP)

$(BENCH_STAMP): pyproject.toml constraints.txt $(PEERS)
	$(PYTHON) -m venv $(BENCH)
	$(BENCH)/bin/pip install --quiet --upgrade pip
	$(BENCH)/bin/pip install --quiet --constraint constraints.txt torch
	$(BENCH)/bin/pip install --quiet --editable '.[fast]'
	$(BENCH)/bin/pip install --quiet --requirement $(PEERS) $$(grep '^torch==' constraints.txt)
	touch $(BENCH_STAMP)

lint: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/lint-imports

format: install
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf $(VENV) $(BENCH) build dist
