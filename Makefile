# make run: everything from nothing to a finished study; make test: the whole suite. `make help` lists the rest.
PYTHON ?= python3
SEED ?= 1
BIN := .venv/bin
INSTALL := $(if $(shell command -v uv 2>/dev/null),uv pip install --python $(BIN)/python --quiet --compile-bytecode,$(BIN)/python -m pip install --quiet --disable-pip-version-check)

.PHONY: help run test test-all test-fast screenshots check chaos bench lock weights clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

run: .venv/installed  ## install into .venv and run the embedded default study
	$(BIN)/hpsearch run --sampler tpe --trials 50

PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
SPREAD := -n $(or $(TEST_PROCESSES),3) --dist loadfile --no-loadscope-reorder

test: .venv/tested  ## install the test extras and run the suite: everything but the long storms and soaks
	$(PYTEST) $(SPREAD) -m "not slow"

test-all: .venv/tested  ## the suite with the long storms and soaks
	$(PYTEST) $(SPREAD)

test-fast: .venv/tested  ## the tests that need no other process: for the inner loop
	$(PYTEST) $(SPREAD) -m "not process"

screenshots: .venv/tested  ## pictures of every page, in tests/screenshots/
	HPSEARCH_SCREENSHOTS=tests/screenshots $(PYTEST) -q -m browser

check: .venv/tested  ## lint, formatting, strict types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

chaos: .venv/tested  ## kill everything again and again and count what is lost (10 to 20 minutes)
	$(BIN)/python -m tests.storm --seed $(SEED)

bench: .venv/installed  ## measure speed on this machine; writes benchmarks/out/
	$(BIN)/python -m benchmarks

lock: ## renew the pinned versions (needs uv)
	uv pip compile pyproject.toml --generate-hashes --no-header --universal --quiet -o requirements.lock
	uv pip compile pyproject.toml --extra test -c requirements.lock --generate-hashes --no-header --universal --quiet -o requirements-test.lock

weights: .venv/installed  ## pretrain the embedded model again (about a minute)
	$(BIN)/python -m hpsearch.finetune.glyphs

clean: ## remove .venv and caches; studies stay
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14) and "hpsearch needs Python 3.11 to 3.13: make PYTHON=python3.12 ...")'
	@echo "Making .venv with $$($(PYTHON) --version)"
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python requirements.lock pyproject.toml
	@echo "Installing pinned dependencies (torch with CUDA is 6 GB: 2 minutes with pip, 20 s with uv)"
	$(INSTALL) --require-hashes -r requirements.lock
	$(INSTALL) --no-deps -e .
	@touch $@

.venv/tested: .venv/installed requirements-test.lock
	$(INSTALL) --require-hashes -r requirements-test.lock
	@touch $@
