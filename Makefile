# `make check` is what CI runs: .ci/run. The other targets are its steps, one by one.
PYTHON ?= .venv/bin/python
SYSTEM_PYTHON ?= python3
OLDEST_PYTHON ?= python3.10
WORKERS ?= 2

.PHONY: help setup test lint types doctest docs build check check-oldest nightly clean

help:
	@echo "setup    make .venv and install the package with its development tools"
	@echo "test     the tests"
	@echo "lint     ruff: rules and format"
	@echo "types    mypy"
	@echo "doctest  the examples in the docstrings"
	@echo "docs     the documentation, with every warning an error, into site/"
	@echo "build    the wheel and the source distribution, into dist/"
	@echo "check    all of it, exactly as CI does"
	@echo "nightly  the tests that take minutes"
	@echo "check-oldest  the tests with the oldest Python, torch and timm that the package admits"

setup:
	$(SYSTEM_PYTHON) -m venv .venv
	.venv/bin/python -m pip install -e '.[dev]'

test:
	$(PYTHON) -m pytest -n $(WORKERS)

lint:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

types:
	$(PYTHON) -m mypy

doctest:
	$(PYTHON) -m pytest --doctest-modules seqjepa

docs:
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict

build:
	$(PYTHON) -m build

check:
	bash .ci/run

nightly:
	$(PYTHON) -m pytest -m nightly

check-oldest:
	$(OLDEST_PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install -e '.[test]' -c tests/oldest.txt
	.venv-oldest/bin/python -m pytest -n $(WORKERS)

clean:
	rm -rf build dist site .mypy_cache .pytest_cache .ruff_cache .hypothesis
