# What a developer and CI type. `make help` lists the targets; each line after ## is what it prints.

PYTHON ?= python3
# More options for pip, for example where a CPU-only torch comes from: make setup PIP_OPTIONS='--extra-index-url URL'
PIP_OPTIONS ?=
VENV := .venv
BIN := $(VENV)/bin
PACKAGES := registry training serving monitoring modelway
# The build of ONNX Runtime: for the GPU where there is an NVIDIA driver, else for the CPU.
VARIANT ?= $(if $(wildcard /proc/driver/nvidia/version),gpu,cpu)
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_OPTIONS) -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help setup setup-dev demo up down test lint bench bench-setup bench-core bench-gpu reliability docs clean

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(firstword $(MAKEFILE_LIST)) | awk -F '\t' '{ printf "make %-10s %s\n", $$1, $$2 }'

setup: $(VENV)/.installed-$(VARIANT) ## Create .venv and install the project; a second run does nothing

setup-dev: $(VENV)/.installed-$(VARIANT)-dev ## The same, with what tests and checks need

demo: setup ## Train, export, serve, canary and roll back on real data; KEEP=1 leaves the platform running
	$(BIN)/modelway demo $(if $(KEEP),--keep)

up: setup ## Start the platform; Ctrl-C stops it
	$(BIN)/modelway up

down: setup ## Stop the platform
	$(BIN)/modelway down

test: setup-dev ## Run all tests against the real engines, with coverage; ARGS='-k name' narrows
	$(BIN)/python -m pytest $(PACKAGES:%=--cov=%) --cov-report=term:skip-covered $(ARGS)

lint: setup-dev ## Check style, types, import direction and generated documents
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/cli_docs.py --check
	$(BIN)/python scripts/settings_docs.py --check

bench-setup: setup-dev ## Build the environments of the servers that make bench compares with, in .bench (2 GB)
	$(BIN)/python -m benchmarks.setup_environments

bench: bench-setup ## Measure speed, releases and memory beside other servers; writes docs/performance.md (35 minutes)
	$(BIN)/python -m benchmarks $(ARGS)

bench-core: setup-dev ## Measure the runtime's core alone: microseconds per request to decode, run and encode
	$(BIN)/python -m benchmarks.runtime_core

bench-gpu: setup-dev ## Measure what a GPU does to a model; needs one
	$(BIN)/python -m benchmarks.gpu

reliability: setup-dev ## Attack, overload and slow down the real platform; writes docs/reliability.md (20 minutes)
	$(BIN)/python -m benchmarks.reliability $(ARGS)

docs: setup-dev ## Write docs/cli.md and docs/settings.md anew
	$(BIN)/python scripts/cli_docs.py
	$(BIN)/python scripts/settings_docs.py

clean: ## Remove .venv, caches and builds; keeps .modelway, the state
	rm -rf $(VENV) build dist *.egg-info .coverage htmlcov .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo "Error: no $(PYTHON). Install Python 3.11 or newer, or name one: make setup PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Error: $$($(PYTHON) --version) is too old. Install Python 3.11 or newer, or name one: make setup PYTHON=/path/to/python3" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# The two builds of ONNX Runtime overwrite each other's files, so the one for the other variant goes first.
$(VENV)/.installed-$(VARIANT): pyproject.toml constraints.txt | $(BIN)/python
	@for other in $(filter-out $(VENV)/.installed-$(VARIANT)%,$(wildcard $(VENV)/.installed-*)); do \
		$(BIN)/python -m pip uninstall --yes --quiet onnxruntime onnxruntime-gpu; rm -f "$$other"; done
	@echo "installing modelway for the $(VARIANT) into $(VENV): takes a few minutes the first time"
	$(PIP_INSTALL) -e '.[$(VARIANT)]'
	@touch $@

$(VENV)/.installed-$(VARIANT)-dev: $(VENV)/.installed-$(VARIANT)
	$(PIP_INSTALL) -e '.[$(VARIANT),dev,examples,postgresql]'
	@touch $@
