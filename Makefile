# One command each, the same for people and for CI. `make help` lists them.
PYTHON ?= python3
ARGS ?=
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-live test test-fast check format bench fuzz wheel clean

help:  ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: .venv/.dev  ## make .venv with everything for demo, tests and checks

.venv/bin/python:
	@sh deploy/make-venv "$(PYTHON)" .venv

# What the demo needs; the tests' PyTorch is not among it.
.venv/.demo: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade -e '.[demo]'
	@touch $@

.venv/.dev: pyproject.toml | .venv/.demo
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

demo: .venv/.demo  ## the whole loop on real wrist motions, about two minutes: make demo ARGS="--json demo.json"
	$(BIN)/sanderling demo $(ARGS)

demo-live: .venv/.demo  ## the same, and then keeps running with the live page's address printed
	$(BIN)/sanderling demo --live $(ARGS)

test: .venv/.dev  ## all tests, the ones with real processes and brokers included
	$(BIN)/python -m pytest $(ARGS)

test-fast: .venv/.dev  ## without the tests that start whole fleets
	$(BIN)/python -m pytest -m "not system" $(ARGS)

check: .venv/.dev  ## formatting, lint, types, import directions
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/.dev  ## put the sources into form
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: .venv/.dev  ## every figure that README and docs claim, as JSON
	@for b in benchmarks/[a-z]*.py; do echo "== $$b" >&2; $(BIN)/python $$b || exit 1; done

FUZZ_SECONDS ?= 60
fuzz: .venv/.dev  ## damage to blobs, guided by coverage, for a minute: make fuzz FUZZ_SECONDS=600
	$(BIN)/python tests/codec/guided.py --seconds $(FUZZ_SECONDS)

wheel: .venv/.dev  ## dist/: the sdist, and the wheel built from it
	$(BIN)/python -m build --outdir dist .

clean:  ## remove what was built (.venv too)
	rm -rf .venv dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
