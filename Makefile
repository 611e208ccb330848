# make demo       everything, on simulated traffic, until Ctrl-C
# make test       lint, types, import contract and all tests
# make chaos      200 faults between Kafka and the store, of which `make test` does 20
# make setup      .venv from requirements.lock, with the command kmon at .venv/bin/kmon
# make rivals     what 'kmon bench ingest' compares with, from rivals.lock, in an environment of its own (2 GB)

PYTHON ?= python3
BIN := .venv/bin
UV := $(shell command -v uv 2>/dev/null || echo .cache/uv/bin/uv)
READY := .venv/.ready

.PHONY: help setup demo test chaos lint format notebooks lock clean rivals

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

setup: $(READY)

# Compiled here once: where PYTHONDONTWRITEBYTECODE is set, each command would compile all of it anew, for seconds.
$(READY): requirements.lock pyproject.toml | $(UV)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "kmon needs Python 3.11 or later: set PYTHON=...")'
	$(UV) venv --quiet --allow-existing --no-python-downloads --python "$$(command -v $(PYTHON))" .venv
	$(UV) pip sync --quiet --compile-bytecode --python $(BIN)/python --require-hashes requirements.lock
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

.cache/uv/bin/uv:
	$(PYTHON) -m venv .cache/uv
	.cache/uv/bin/python -m pip install --quiet --disable-pip-version-check uv

demo: setup
	@$(BIN)/kmon demo

test: lint
	$(BIN)/python -m pytest --numprocesses 2 --dist loadgroup $(PYTEST)

chaos: setup
	KMON_CHAOS=200 $(BIN)/python -m pytest --numprocesses 0 --capture no tests/chaos $(PYTEST)

lint: setup
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy --no-error-summary
	mkdir -p .cache && $(BIN)/lint-imports > .cache/imports.log 2>&1 || (cat .cache/imports.log; exit 1)

format: setup
	$(BIN)/ruff check --quiet --fix .
	$(BIN)/ruff format --quiet .

notebooks: setup
	$(BIN)/python -m pytest --numprocesses 0 tests/apps/test_app_notebooks.py tests/jobs/test_runner.py $(PYTEST)

# Their requirements conflict with ours, so they are run as processes of their own.
rivals: rivals.lock | $(UV)
	$(UV) venv --quiet --allow-existing --no-python-downloads --python "$$(command -v $(PYTHON))" .cache/rivals
	$(UV) pip sync --quiet --python .cache/rivals/bin/python --require-hashes rivals.lock

lock: | $(UV)
	$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
	    --extra dev pyproject.toml --output-file requirements.lock
	$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
	    --group rivals --output-file rivals.lock

clean:
	rm -rf .venv .cache .mypy_cache .ruff_cache .hypothesis demo
