# Every target sets up what it needs: a fresh clone, Python 3.11+ and make are enough.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SOURCES := assetclass_pipeline assetclass_pipeline_tests benchmarks deploy setup.py

# Test processes: one more than there are cores, up to four, because some tests wait for Dagster.
WORKERS ?= $(shell $(PYTHON) -c 'import os; print(min(4, (os.cpu_count() or 1) + 1))')

# Tests start hundreds of processes: without kept bytecode each would compile all our modules anew.
test faults conformance: export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help setup demo test faults conformance check format up bench lock clean

help:  ## this list
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 13

setup: $(READY)  ## .venv with every dependency at its locked version

$(READY): requirements.lock pyproject.toml setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name one with PYTHON=python3.12")'
	@echo "Setting up $(VENV) (once)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: $(READY)  ## correct real market data on the embedded PostgreSQL
	@$(BIN)/assetclass demo

up: $(READY)  ## webserver, daemon, API and database; Ctrl-C stops them all
	@$(BIN)/assetclass up

# Thousands of tests of real processes, more of them than cores: one that came too late on a busy
# machine is tried once more and listed with what it said, up to three. What a fault did to the
# rows is never tried again, and neither is a fourth failure.
test: $(READY)  ## all tests, on real PostgreSQL
	@$(BIN)/python -m pytest -n $(WORKERS) --reruns 1 --max-suite-reruns 3 --rerun-show-tracebacks \
		--rerun-exclude-path assetclass_pipeline_tests/faults

faults: $(READY)  ## every fault with all its tries, and what became of the rows
	@$(BIN)/python -m pytest -n $(WORKERS) --fault-tries full \
		assetclass_pipeline_tests/faults

conformance: $(READY)  ## thousands of cases of the OpenAPI document, by every role
	@$(BIN)/python -m pytest -n $(WORKERS) --schema-cases full \
		assetclass_pipeline_tests/api/test_description.py

check: $(READY)  ## formatter, linter, types, import rules, spelling
	@$(BIN)/ruff format --check $(SOURCES)
	@$(BIN)/ruff check $(SOURCES)
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache
	@$(BIN)/typos

format: $(READY)  ## apply the formatter and the linter's own fixes
	@$(BIN)/ruff format $(SOURCES)
	@$(BIN)/ruff check --fix $(SOURCES)

bench: $(READY)  ## ratios against a baseline of the same run
	@$(BIN)/python -m benchmarks

lock: $(READY)  ## write requirements.lock anew from pyproject.toml
	@$(BIN)/uv pip compile --quiet --universal --upgrade --generate-hashes --no-annotate --no-header \
		--no-strip-extras --python-version 3.11 --all-extras pyproject.toml -o requirements.lock

clean:  ## remove .venv and caches; the embedded database in .assetclass stays
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
