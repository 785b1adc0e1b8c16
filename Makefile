# jaxprune: everything below sets itself up first, once, and again when pyproject.toml or constraints.txt change.
#   make evolve ARGS="--task fashion --time 20m"      make test ARGS="-k parsing"      make setup PYTHON=python3.12
#   make setup ACCELERATOR=cuda      installs for an NVIDIA GPU (tpu, none) whatever is found here; .venv stays so until another is named

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup evolve doctor transfer test test-slow check lint format bench constraints clean distclean FORCE

ARGS ?=
JOBS ?= 2
FUNCTION ?= mean_shift
BIN := .venv/bin
READY := .venv/.ready
SET_UP_FOR := $(or $(shell cat .venv/.accelerator 2>/dev/null),auto)
ACCELERATOR ?= $(SET_UP_FOR)
CHOOSE_EXTRA := -I jaxprune/accelerators.py "$(ACCELERATOR)"
SAY_HOW_WITHOUT := [ -z "$$extra" ] || echo "Could not install jaxprune[$$extra]. To set up for the CPU alone: make setup ACCELERATOR=none" >&2

# Compiled programs are kept between runs and shared by the test processes.
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.jax_cache
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS ?= 0
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore

# A virtual environment holds absolute paths: one that was moved or copied here is made anew; so is one for another accelerator.
ifneq ($(shell cat $(READY) 2>/dev/null) $(SET_UP_FOR),$(CURDIR) $(ACCELERATOR))
$(READY): FORCE
endif

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY)  ## make .venv and install jaxprune into it, with the tools to develop it
	@echo "Set up: $$($(BIN)/python --version) in .venv"

$(READY): pyproject.toml constraints.txt
	@python=; seen=; \
	for candidate in $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11 python); do \
	  version=$$("$$candidate" -c 'import ensurepip, sys, venv; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null) || continue; \
	  if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then python=$$candidate; break; fi; \
	  seen="$$seen$${seen:+, }$$candidate is $$version"; \
	done; \
	uv=$$(command -v uv || true); \
	if [ -z "$$python" ] && [ -z "$$uv" ]; then \
	  echo "jaxprune needs Python 3.11 or newer with its venv module, and found none among $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11 python)$${seen:+ ($$seen)}." >&2; \
	  echo "Install one (on Debian and Ubuntu: python3 and python3-venv), or name it: make setup PYTHON=/path/to/python3.12" >&2; \
	  exit 1; \
	fi; \
	if [ -n "$$python" ]; then extra=$$("$$python" $(CHOOSE_EXTRA)); \
	else extra=$$(uv run --quiet --no-project --python '>=3.11' python $(CHOOSE_EXTRA)); fi; \
	if [ "$$(cat $(READY) 2>/dev/null) $(SET_UP_FOR)" != "$(CURDIR) $(ACCELERATOR)" ] || ! $(BIN)/python -c '' 2>/dev/null; then rm -rf .venv; fi; \
	rm -f $(READY); \
	if [ -n "$$uv" ]; then \
	  echo "Setting up .venv with uv ..."; \
	  if { [ -x $(BIN)/python ] || uv venv --quiet --seed --python "$${python:->=3.11}" .venv; } \
	     && uv pip install --quiet --python $(BIN)/python -c constraints.txt -e ".[dev$${extra:+,$$extra}]"; then \
	    echo "$(ACCELERATOR)" > .venv/.accelerator; echo "$(CURDIR)" > $(READY); exit 0; \
	  fi; \
	  [ -n "$$python" ] || { $(SAY_HOW_WITHOUT); exit 1; }; \
	  echo "uv could not set up .venv: trying pip."; rm -rf .venv; \
	fi; \
	echo "Setting up .venv with $$python ($$version): a minute or two the first time ..."; \
	[ -x $(BIN)/python ] || "$$python" -m venv .venv; \
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip >/dev/null; \
	$(BIN)/python -m pip install -qq -c constraints.txt -e ".[dev$${extra:+,$$extra}]" || { $(SAY_HOW_WITHOUT); exit 1; }; \
	echo "$(ACCELERATOR)" > .venv/.accelerator; echo "$(CURDIR)" > $(READY)

evolve: $(READY)  ## evolve pruning functions with the quick preset; ARGS="..." are passed on (see --help)
	@$(BIN)/jaxprune evolve $(ARGS)

doctor: $(READY)  ## show devices, versions, data and disk, and test in seconds that they compute
	@$(BIN)/jaxprune doctor $(ARGS)

transfer: $(READY)  ## rehearse a transfer on packaged digits; FUNCTION="..." names the function, ARGS="..." are passed on
	@$(BIN)/jaxprune transfer --function "$(FUNCTION)" --network experiments.cifar_transfer.networks:resnet8 --data digits \
	  --macs-fraction 0.5 --recipe adam_short --base-epochs 6 --bases 2 --out runs/transfer $(ARGS)

test: $(READY)  ## run the fast tests and the examples in docstrings
	@$(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal -m 'not slow and not gpu' $(ARGS)

test-slow: $(READY)  ## run the slow tests
	@$(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal -m 'slow and not gpu' $(ARGS)

check: lint  ## lint, formatting, types and the quickest tests
	@$(BIN)/python -m pytest -q -m 'not slow and not gpu' tests/test_layout.py tests/test_import.py tests/language

lint: $(READY)  ## lint, formatting and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(READY)  ## rewrite the code in the project's format
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .

bench: $(READY)  ## run the benchmarks
	@for file in benchmarks/*.py; do echo "== $$file"; $(BIN)/python "$$file" $(ARGS); done

constraints: $(READY)  ## write the installed versions to constraints.txt
	@{ sed -n '/^#/p' constraints.txt; $(BIN)/python -m pip freeze --exclude-editable \
	  | sed 's/^\(uvloop==.*\)/\1 ; sys_platform != "win32"/'; } > constraints.new && mv constraints.new constraints.txt

clean:  ## remove caches and build products; runs/ and .venv stay
	@rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .jax_cache .coverage constraints.new
	@find jaxprune tests benchmarks experiments -type d -name __pycache__ -prune -exec rm -rf {} +

distclean: clean  ## clean, and remove .venv as well
	@rm -rf .venv
