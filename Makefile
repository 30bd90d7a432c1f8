# `make demo` and `make test` create .venv and install what they need by themselves; a second call reuses it.
# Everything after the target's name goes through ARGS, for example: make demo ARGS=--no-serve

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --quiet --constraint constraints.txt
ARGS ?=
# Tests run in so many processes, a file in one; 0 is none but make's own. They are many small computations, which further
# threads only slow down.
WORKERS ?= logical
PYTEST := OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 4 --dist loadfile
# Every installation brings faiss-cpu back, so what `install-gpu` or `install-cuvs` swapped is swapped again.
define SWAP_FAISS
	@if [ -e $(VENV)/.faiss ]; then \
		$(BIN)/python -m pip uninstall --quiet --yes faiss-cpu faiss-gpu faiss-gpu-cuvs && \
		$(PIP) "$$(cat $(VENV)/.faiss)>=1.15"; fi
endef

.PHONY: help install install-dev install-gpu install-cuvs demo test test-slow lint format clean

help:  ## Show the targets.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(VENV)/.runtime  ## Create .venv with the program.

install-dev: $(VENV)/.dev  ## The same with the tools of a developer.

# faiss-gpu and faiss-cpu install the same module, so one has to go before the other comes.
install-gpu: $(VENV)/.runtime  ## The same for a machine with an NVIDIA GPU.
	$(PIP) --editable '.[gpu]'
	@echo faiss-gpu > $(VENV)/.faiss
	$(SWAP_FAISS)

install-cuvs: $(VENV)/.runtime  ## The same with graphs that are built on the GPU (CUDA 13).
	$(PIP) --editable '.[cuvs]'
	@echo faiss-gpu-cuvs > $(VENV)/.faiss
	$(SWAP_FAISS)

demo: $(VENV)/.runtime  ## The whole pipeline on MovieLens-100K, then the served page.
	$(BIN)/recsys demo $(ARGS)

test: $(VENV)/.dev  ## All tests but the slow ones.
	$(PYTEST) -m 'not slow and not gpu' $(ARGS)

test-slow: $(VENV)/.dev  ## The slow tests: real weights, real browser.
	$(PYTEST) -m 'slow and not gpu' $(ARGS)

lint: $(VENV)/.dev  ## Style, types and the direction of imports.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev  ## Let ruff lay out the code.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## Remove .venv, caches and build outputs; runs/ stays.
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=")'
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

# PyTorch comes first and alone, so that nothing else decides which of its builds is taken.
$(VENV)/.runtime: pyproject.toml constraints.txt | $(BIN)/python
	@echo 'installing into $(VENV) (a few minutes the first time)' >&2
	$(PIP) torch
	$(PIP) --editable .
	$(SWAP_FAISS)
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime
	$(PIP) --editable '.[dev]'
	$(SWAP_FAISS)
	@touch $@
