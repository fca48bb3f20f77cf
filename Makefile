# make quickstart   install, run the quickstart suite on embedded data, write the page
# make test         install and pass the tests
# make soak         endurance: runs hurt by a schedule (SEED=0), then 2,000 spoilt command lines and the longest tests; it stops by itself
# make mutants      put some 160 small faults into the core, one at a time: tests must see each
# make gpu          all that needs a GPU, in nine minutes (DEVICE=cpu rehearses it), figures to results/gpu
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUNS ?= runs/quickstart
DEVICE ?= cuda
SEED ?= 0
export PIP_DISABLE_PIP_VERSION_CHECK = 1
export MLFLOW_DISABLE_TELEMETRY = true

.PHONY: help install install-test quickstart test soak mutants gpu lint clean

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

$(VENV)/.stamp-install: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 10) else "cl-bench needs Python 3.10 or newer; make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=23.3"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.stamp-test: $(VENV)/.stamp-install
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test]"
	@touch $@

install: $(VENV)/.stamp-install

install-test: $(VENV)/.stamp-test

quickstart: install
	$(BIN)/cl-bench suite quickstart --runs $(RUNS) --again

test: install-test lint
	$(BIN)/python -m pytest -q -n 2 --dist worksteal

soak: install-test
	$(BIN)/python -m tools.soak --seed $(SEED)
	$(BIN)/python -m pytest -q -n0 tests/test_fuzz.py --fuzz-cases 2000
	$(BIN)/python -m pytest -q -n2 --soak

mutants: install-test
	$(BIN)/python tools/mutants.py --jobs 2

# On a bare GPU machine nothing is installed: its own python runs the checkout (benchmarks/gpu/run.sh).
gpu:
	@PYTHON=$$(test -x $(BIN)/python && echo $(CURDIR)/$(BIN)/python || echo $(PYTHON)) benchmarks/gpu/run.sh --device $(DEVICE)

lint: install-test
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
