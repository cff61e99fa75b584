# `make install` sets a machine up, `make demo` shows what it does, `make test` proves it.
# All of them run as root, can be run again, and are quiet when there is nothing to do.
# Variables: PYTHON=/path/to/python3 (for .venv), CONFIG=FILE (settings of the node).

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
MAKEFLAGS += --no-print-directory

export PYTHON MAKECMDGOALS
PY := .venv/bin/python
CONFIG_OPTION := $(if $(CONFIG),--config $(CONFIG))

.PHONY: help install demo test test-long fuzz bench compatibility lint clean distclean system templates node-packages command

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | sort | awk -F'\t' '{printf "make %-13s %s\n", $$1, $$2}'

install: system .venv/.installed templates command ## Packages, .venv with the `sandgate` command, templates

demo: system .venv/.installed-dev templates node-packages command ## Run the examples against a node of this machine
	@$(PY) examples/run_all.py

test: system .venv/.installed-dev templates node-packages ## The tests
	@$(PY) -m pytest tests -m "not long"

test-long: system .venv/.installed-dev templates node-packages ## The tests that take minutes
	@$(PY) -m pytest tests -m long
	@$(PY) -m pytest tests -m "hypothesis and not long" --hypothesis-profile=default

bench: system .venv/.installed-dev templates ## Measure, next to what is installed here
	@$(PY) -m benchmarks

compatibility: system .venv/.installed-dev templates ## Try many versions of the SDKs, and write docs/compatibility.md
	@$(PY) scripts/compatibility.py

fuzz: .venv/.installed-dev ## Look for input that breaks a parser; FUZZ_SECONDS=N for each, TARGETS="..."
	@PYTHONPATH=tests $(PY) -m fuzz --seconds $(or $(FUZZ_SECONDS),60) $(TARGETS)

lint: .venv/.installed-dev ## Style and types
	@$(PY) -m ruff check --quiet .
	@$(PY) -m ruff format --check --quiet .
	@$(PY) -m mypy --no-error-summary

clean: ## Remove caches, build output and Node packages
	@rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find . -path ./.venv -prune -o -path ./.git -prune -o \
	    \( -name __pycache__ -o -name node_modules -o -name '*.egg-info' \) -type d \
	    -prune -exec rm -rf {} +

distclean: clean ## The same, and .venv (templates and data stay where they are)
	@rm -rf .venv

system:
	@scripts/install-system.sh

# A `sandgate` that is somebody else's stays.
command: .venv/.installed
	@if [ -L /usr/local/bin/sandgate ] || [ ! -e /usr/local/bin/sandgate ]; then \
	    ln -sfn "$(CURDIR)/.venv/bin/sandgate" /usr/local/bin/sandgate; fi

# With the dev packages the plain ones are installed as well, and the script sets both marks; so
# targets that need the dev packages name them first.
.venv/.installed: pyproject.toml scripts/install-python.sh | system
	@scripts/install-python.sh

.venv/.installed-dev: pyproject.toml scripts/install-python.sh
	@scripts/install-python.sh dev

templates: .venv/.installed | system
	@$(PY) -m sandgate.templates build $(CONFIG_OPTION)

node-packages: .venv/.installed-dev
	@scripts/install-node-packages.sh
