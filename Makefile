# Needs git, make and Python 3.11 to 3.14; everything else is installed into .venv by the first target.
# `make` alone lists the targets.

SHELL := /bin/bash
BIN := .venv/bin
READY := .venv/.synced

# Options for crypto-ml train, pytest, the benchmarks: make train ARGS="--days 180"
ARGS ?=

# The newest Python that requirements.lock has wheels for. Each candidate is run, because a version
# manager can put a name on the path that has no Python behind it.
PYTHON ?= $(shell for python in python3.14 python3.13 python3.12 python3.11 python3 python; do \
	"$$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' >/dev/null 2>&1 \
	&& echo "$$python" && break; done)

.PHONY: help setup train test lab export bench calibration docs lock clean
.DEFAULT_GOAL := help

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY) ## the environment in .venv; the other targets call it when it is missing or out of date

$(READY): requirements.lock pyproject.toml .ci/setup
	@PYTHON='$(PYTHON)' .ci/setup

train: $(READY) ## train on the simulated market and print the verdict and the report's path
	@$(BIN)/crypto-ml train $(ARGS)

test: $(READY) ## everything that CI runs; GATES="lint types" for some of it only
	@$(BIN)/python .ci/check.py $(GATES)

lab: $(READY) ## JupyterLab on the notebooks
	@$(BIN)/jupyter lab --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/nbs $(ARGS)

export: $(READY) ## after editing a notebook: write the modules, clean the notebooks, render README.md
	@$(BIN)/nbdev-export
	@$(BIN)/nbdev-clean
	@$(BIN)/python .ci/readme.py

bench: $(READY) ## speed beside plain pandas, scikit-learn, CSV, feather and Parquet, in alternation
	@$(BIN)/python bench/run.py $(ARGS)
	@$(BIN)/python bench/store.py $(ARGS)

calibration: $(READY) ## how often the verdict and the intervals are right, over many simulated markets
	@$(BIN)/python bench/calibration.py $(ARGS)

docs: $(READY) ## the documentation site in docs/_build/html
	@mkdir -p docs/_build/source
	@$(BIN)/sphinx-build -qEW --keep-going -c docs docs/_build/source docs/_build/html
	@echo 'docs/_build/html/index.html'

lock: $(READY) ## resolve requirements.lock anew from pyproject.toml (ARGS=--upgrade for newer versions)
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --all-extras --group lab --group docs --group dev $(ARGS) \
		pyproject.toml -o requirements.lock

clean: ## remove .venv, caches and the built site; runs/ and models/ stay
	@rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage* docs/_build *.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
