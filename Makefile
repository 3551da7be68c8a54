# maeflow: the whole set-up is done by the targets themselves; nothing but Python >= 3.11 and make is needed.

VENV := .venv
BIN := $(VENV)/bin
PYTHON := $(shell for p in python3.13 python3.12 python3.11 python3; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo $$p && break; done)
PIP := $(BIN)/python -m pip --disable-pip-version-check
RUN_STAMP := $(VENV)/.installed
DEV_STAMP := $(VENV)/.installed-dev
# One thread per test process: two busy processes of two threads each are slower than two of one.
TEST_ENV := OMP_NUM_THREADS=1

.DEFAULT_GOAL := help
.PHONY: help demo test check format bench constraints clean

help: ## Show what there is
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/|/' | awk -F'|' '{printf "make %-12s %s\n", $$1, $$2}'

demo: $(RUN_STAMP) ## Digits from raw files to a report, in about ten minutes on two cores
	$(BIN)/maeflow demo image

test: $(DEV_STAMP) ## Run all tests
	$(TEST_ENV) $(BIN)/python -m pytest -n 2 --dist worksteal

check: $(DEV_STAMP) ## Format, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(DEV_STAMP) ## Put the code into its form
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(DEV_STAMP) ## Time one training step and the loading of images beside their peers
	$(BIN)/python benchmarks/pretrain_step.py
	$(BIN)/python benchmarks/image_loading.py

constraints: $(DEV_STAMP) ## Write down the versions in use
	$(BIN)/python -m pip freeze --exclude-editable | grep -E '^[A-Za-z0-9_.-]+==[^ ]+$$' | sort -f > constraints.txt

clean: ## Remove the environment and caches, keep results
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "maeflow needs Python 3.11 or newer with its venv module (Debian: apt-get install python3-venv)"; exit 1; }
	@echo "Making the environment $(VENV) with $(PYTHON)"
	$(PYTHON) -m venv $(VENV)

# A stamp is written last: an interrupted installation is taken up again by the next call.
$(RUN_STAMP): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing maeflow and what it needs: about 5 GB with PyTorch's CUDA libraries, one to five minutes"
	$(PIP) install --quiet --constraint constraints.txt --editable .
	@touch $@

$(DEV_STAMP): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing maeflow with its test tools: about 5 GB with PyTorch's CUDA libraries, one to five minutes"
	$(PIP) install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@ $(RUN_STAMP)
