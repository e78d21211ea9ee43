# Everything runs in a virtual environment that the first target makes. PYTHON picks the interpreter (3.11 to 3.13).
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help demo check test test-fast test-gpu test-oldest test-ddp test-long mutants lint type bench bench-gpu docs clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	  || { echo "fgssl needs Python 3.11 to 3.13; choose one with make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	@echo "Installing (PyTorch and its companions are a large download) ..."
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

demo: $(READY)  ## train four methods on handwritten digits and compare them, under 5 minutes on 2 cores
	$(BIN)/python experiments/demo.py

test: $(READY)  ## the test suite; a third process uses what the two cores leave while tests wait for processes
	$(BIN)/python -m pytest -n 3 --dist worksteal

test-fast: $(READY)  ## the tests that take no training run and no second process, under 3 minutes on 2 cores
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not ddp"

test-long: $(READY)  ## make demo and the pages' commands at full size, about 10 minutes on 2 cores
	$(BIN)/python -m pytest -m long

test-gpu: $(READY)  ## the tests that need a CUDA GPU; skipped with a reason where there is none
	$(BIN)/python -m pytest -m gpu -rs

test-oldest:  ## make test-fast with the oldest packages that pyproject.toml allows, in .venv-oldest
	mkdir -p .venv-oldest
	$(PYTHON) tests/oldest.py > .venv-oldest/constraints.txt
	PIP_CONSTRAINT=.venv-oldest/constraints.txt $(MAKE) test-fast VENV=.venv-oldest

test-ddp: $(READY)  ## the tests that start several processes
	$(BIN)/python -m pytest -m ddp

mutants: $(READY)  ## small changes of the source, each of which a test has to notice; up to 2 hours, goes on where it stopped
	$(BIN)/python -m tests.mutants

check: lint type  ## rules, format and types

lint: $(READY)  ## ruff: rules and format
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

type: $(READY)  ## mypy
	$(BIN)/mypy

bench: $(READY)  ## speed and memory, as ratios taken in one run
	@for bench in $(filter-out %/bench_gpu.py,$(wildcard tests/benchmarks/bench_*.py)); do echo "== $$bench"; $(BIN)/python $$bench || exit 1; done

bench-gpu: $(READY)  ## speed and memory on the GPU of this machine, into docs/benchmarks.md
	$(BIN)/python -m tests.benchmarks.bench_gpu

docs: $(READY)  ## the documentation site, in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html; for the search: $(PYTHON) -m http.server --bind 127.0.0.1 --directory site"

clean:  ## remove the environments and caches; runs/ stays
	rm -rf $(VENV) .venv-oldest .pytest_cache .ruff_cache .mypy_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
