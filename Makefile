# maeflow: each target sets up what it needs; nothing but Python >= 3.11 and make has to be there.

BIN := .venv/bin
RUN_STAMP := .venv/.installed-run
DEV_STAMP := .venv/.installed-dev
PINS := pyproject.toml constraints.txt
# An environment whose interpreter went away (an upgraded system Python) is made anew in spite of its stamps.
ifneq ($(shell test -x $(BIN)/python && echo sound),sound)
PINS += missing-environment
endif
# One arithmetic thread per test process: two busy processes of two threads each are slower than two of one.
TEST_ENV := OMP_NUM_THREADS=1

.DEFAULT_GOAL := help
.PHONY: help install demo test test-long test-e2e prefect.yaml check format bench constraints clean missing-environment

help: ## Show what there is
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/|/' | awk -F'|' '{printf "make %-12s %s\n", $$1, $$2}'

install: $(RUN_STAMP) ## Put maeflow and what it needs into .venv

demo: $(RUN_STAMP) ## Digits from raw files to a report, in about ten minutes on two cores
	$(BIN)/maeflow demo image

test: $(DEV_STAMP) ## Run the tests
	$(TEST_ENV) $(BIN)/python -m pytest -n 2 --dist loadscope

test-long: $(DEV_STAMP) ## Run the tests that `make test` leaves out because they take minutes
	$(TEST_ENV) MAEFLOW_TEST_LONG=1 $(BIN)/python -m pytest -n 2 --dist loadscope -m long

test-e2e: $(DEV_STAMP) ## Walk through servers and their pages as people do, with Chromium where there is one
	$(TEST_ENV) MAEFLOW_TEST_E2E=1 $(BIN)/python -m pytest tests/e2e -m e2e -x -rs --durations=5

check: $(DEV_STAMP) ## Format, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(DEV_STAMP) ## Put the code into its form
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(DEV_STAMP) ## Time one training step and the loading of images, videos, sound and scans beside their peers
	$(BIN)/python benchmarks/pretrain_step.py
	$(BIN)/python benchmarks/image_loading.py
	$(BIN)/python benchmarks/video_loading.py
	$(BIN)/python benchmarks/audio_features.py
	$(BIN)/python benchmarks/scan_loading.py

constraints: $(DEV_STAMP) ## Write down the versions in use
	$(BIN)/python .ci/constraints >.venv/constraints.txt
	cp .venv/constraints.txt constraints.txt
	@touch $(RUN_STAMP) $(DEV_STAMP)

# Deployments for Prefect's own command, from the recipes.
prefect.yaml: $(DEV_STAMP)
	$(BIN)/python .ci/prefect_yaml >.venv/prefect.yaml
	cp .venv/prefect.yaml prefect.yaml

clean: ## Remove the environment and caches, keep results
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

# A stamp is written last, so an installation that was cut short is taken up again by the next call.
$(RUN_STAMP): $(PINS)
	@.ci/install RUN

$(DEV_STAMP): $(PINS)
	@.ci/install DEV
