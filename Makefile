PYTHON ?= python3
PYTEST_OPTIONS ?= -n 2 --dist loadgroup
# The pip of a new virtual environment is old and takes twice as long as the newest one.
VENV = $(PYTHON) -m venv --upgrade-deps
# Compiling everything that is installed takes a minute. Instead, modules are compiled when they are
# first imported, once for all processes of the tests.
INSTALL = -m pip install --quiet --no-compile
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test test-all mutants lowest dist lint docs clean
.DEFAULT_GOAL := help

help:  ## List the targets.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 12

demo: .venv-demo/stamp  ## Train, adapt and compare on real text, for about five minutes.
	.venv-demo/bin/metajax demo

test: .venv/stamp  ## Run the tests, except the slow ones.
	.venv/bin/python -m pytest $(PYTEST_OPTIONS)

test-all: .venv/stamp  ## Run all tests.
	.venv/bin/python -m pytest $(PYTEST_OPTIONS) -m ""

mutants: .venv/stamp  ## Plant each listed fault and check that its tests fail.
	.venv/bin/python -m tests.mutants $(MUTANTS)

lowest: .venv-lowest/stamp  ## Run the tests with the lowest versions that pyproject.toml allows.
	.venv-lowest/bin/python -m pytest $(PYTEST_OPTIONS)

dist: .venv/stamp  ## Build a wheel and an sdist in dist/, install and try each.
	rm -rf dist
	for extra in cpu cuda13 tpu; do \
	  .venv/bin/uv pip compile --quiet --extra $$extra --output-file /dev/null pyproject.toml || exit; \
	done
	.venv/bin/python -m build --quiet
	.venv/bin/python -m tests.try_dist dist

lint: .venv/stamp  ## Check style and types.
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy

docs: .venv-docs/stamp  ## Build the documentation site in site/.
	.venv-docs/bin/mkdocs build --strict

clean:  ## Remove the virtual environments and caches.
	rm -rf .venv .venv-demo .venv-docs .venv-lowest dist site
	rm -rf .pytest_cache .ruff_cache .mypy_cache *.egg-info

# Install PyTorch first, so that no other package selects a different version.
.venv/stamp: pyproject.toml
	$(VENV) .venv
	.venv/bin/python $(INSTALL) torch==2.13.0
	.venv/bin/python $(INSTALL) -e ".[test]"
	touch $@

.venv-lowest/stamp: pyproject.toml
	$(VENV) .venv-lowest
	.venv-lowest/bin/python $(INSTALL) torch==2.13.0
	.venv-lowest/bin/python tests/lowest_versions.py > .venv-lowest/constraints.txt
	.venv-lowest/bin/python $(INSTALL) -e ".[test]" -c .venv-lowest/constraints.txt
	touch $@

.venv-demo/stamp: pyproject.toml
	$(VENV) .venv-demo
	.venv-demo/bin/python $(INSTALL) -e ".[report]"
	touch $@

.venv-docs/stamp: pyproject.toml
	$(VENV) .venv-docs
	.venv-docs/bin/python $(INSTALL) -e ".[docs]"
	touch $@
