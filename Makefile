# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SEED ?= 0

.DEFAULT_GOAL := help
.PHONY: help demo test slow check format dashboard reference clean

help:  ## Show this help
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/:/' | column -t -s ':'

$(BIN)/ropewalk: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	@touch $@

$(VENV)/dev: $(BIN)/ropewalk
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(BIN)/ropewalk  ## Search factors for the embedded reference model (SEED=1 for another run)
	@$(BIN)/ropewalk search --config search/configs/demo.yaml --seed $(SEED)

test: $(VENV)/dev  ## Run the tests
	$(BIN)/python -m pytest

slow: $(VENV)/dev  ## Run the tests that take minutes
	$(BIN)/python -m pytest -m slow

check: $(VENV)/dev  ## Lint, types, law of imports, docstrings
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/interrogate --quiet rope needles results workers search

format: $(VENV)/dev  ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

dashboard: $(BIN)/ropewalk  ## Open the newest run's study in optuna-dashboard
	$(BIN)/optuna-dashboard "$$(ls -td runs/*/study.journal | head -n 1)"

reference: $(BIN)/ropewalk  ## Train the reference model again (CORPUS=folder of books)
	$(BIN)/python -m workers.reference.train --corpus $(CORPUS)

clean:  ## Remove the environment and all caches; runs/ stays
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache *.egg-info
