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

# What CI passes to the targets below, as variables of the environment: no shell reads their text.
export RUN ?= runs/ci
export SOURCE ?= sim:clear
export DAYS ?= 0
export MODELS_URL ?=
export TAG ?=

# Programs of bench/; sweep and large take long and stand apart.
BENCH ?= features live training compiled run store

.PHONY: help setup train test lab export bench calibration docs lock run gates promote announce pull push wheel sbom release clean
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

bench: $(READY) ## speed as ratios, each pair in alternation: make bench BENCH="features live"
	@for name in $(BENCH); do echo "bench/$$name.py"; $(BIN)/python "bench/$$name.py" $(ARGS) || exit; done

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

run: $(READY) ## one run by papermill, as CI does: make run RUN=runs/ci SOURCE=sim:clear DAYS=0
	@$(BIN)/papermill nbs/train.ipynb "$$(mktemp -d)/train.ipynb" -k python3 \
		-p run_folder "$$RUN" -p source "$$SOURCE" -p days "$$DAYS"

gates: $(READY) ## whether RUN would be promoted, gate by gate; fails when not
	@$(BIN)/crypto-ml gates "$$RUN"

promote: $(READY) ## make RUN's model the live one, if every gate agrees
	@$(BIN)/crypto-ml promote "$$RUN"

announce: $(READY) ## tell the channels of settings.ini how RUN ended
	@$(BIN)/crypto-ml notify run "$$RUN"

pull: ## fetch models/ from the bucket MODELS_URL, gs://NAME/models
	@mkdir -p models
	@gcloud storage rsync --recursive "$$MODELS_URL" models

push: ## bring models/ to the bucket MODELS_URL
	@gcloud storage rsync --recursive models "$$MODELS_URL"

wheel: $(READY) ## the wheel and the source distribution, in dist/
	@$(BIN)/uv build --quiet --no-build-isolation --python $(BIN)/python --out-dir dist

sbom: $(READY) ## the bill of materials of requirements.lock, dist/sbom.cdx.json
	@mkdir -p dist
	@$(BIN)/python .ci/sbom.py > dist/sbom.cdx.json

release: ## publish dist/ as the release of TAG; needs GitHub's gh
	@gh release create "$$TAG" dist/* --verify-tag --generate-notes

clean: ## remove .venv, caches and the built site; runs/ and models/ stay
	@rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage* docs/_build *.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
