# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SEED ?= 0

.DEFAULT_GOAL := help
.PHONY: help demo test slow engines check format dashboard reference clean

help:  ## Show this help
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/:/' | column -t -s ':'

$(BIN)/ropewalk: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	@touch $@

$(VENV)/dev: $(BIN)/ropewalk
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(BIN)/ropewalk  ## Search factors for the embedded reference model, and fine-tune it with them (SEED=1 for another run)
	@$(BIN)/python -m workers.reference.documents --out runs/demo-documents.jsonl --seed $(SEED)
	@$(BIN)/ropewalk search --config search/configs/demo.yaml --seed $(SEED) --then-finetune search/configs/demo-finetune.yaml

test: $(VENV)/dev  ## Run the tests
	$(BIN)/python -m pytest

slow: $(VENV)/dev  ## Run the tests that take minutes
	$(BIN)/python -m pytest -m slow

# llama.cpp's library without its programs, in minutes: GGML_NATIVE asks for this CPU's instructions, which no test needs.
LLAMA_CPP_OPTIONS := $(foreach part,GGML_NATIVE GGML_OPENMP GGML_LLAMAFILE LLAVA_BUILD LLAMA_OPENSSL \
	$(addprefix LLAMA_BUILD_,EXAMPLES TESTS TOOLS SERVER),-D$(part)=OFF)

$(VENV)/engines: $(VENV)/dev
	CMAKE_ARGS="$(LLAMA_CPP_OPTIONS)" CMAKE_BUILD_PARALLEL_LEVEL=$$(nproc) $(BIN)/python -m pip install --quiet \
		--disable-pip-version-check --constraint constraints.txt --editable '.[llama-cpp]'
	@touch $@

engines: $(VENV)/engines  ## Run the tests in serving engines; compiles llama.cpp first, about ten minutes; ROPEWALK_SMOLLM2_GGUF=FILE for SmolLM2-135M too
	$(BIN)/python -m pytest -m engines

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
