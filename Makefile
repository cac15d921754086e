# make help lists the targets. Everything is set up in .venv, under constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO_OUTPUT ?= demo_run
# Tests run in two workers: one computing thread each.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help demo test test-all soak lint engines bench bench-all clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(VENV)/.made:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "rankery needs Python 3.10 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.demo: $(VENV)/.made pyproject.toml constraints.txt
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[demo]'
	touch $@

$(VENV)/.dev: $(VENV)/.made pyproject.toml constraints.txt
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	touch $@ $(VENV)/.demo

$(VENV)/.bench: $(VENV)/.made pyproject.toml constraints.txt
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[demo,bench]'
	touch $@

demo: $(VENV)/.demo ## fine-tune a reranker on built-in data and show what it gained
	$(BIN)/rankery demo --output $(DEMO_OUTPUT) --overwrite # of an earlier demo alone: another folder is refused

lint: $(VENV)/.dev ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint ## lint, types and tests
	$(PYTEST) -m "not slow"

test-all: lint ## all tests, the slow ones too (tens of minutes)
	$(PYTEST)

soak: $(VENV)/.dev ## 200 random kills of trainings: each resumed run ends with the bytes of the whole one (ten minutes)
	OMP_NUM_THREADS=1 $(BIN)/python tests/soak.py

engines: $(VENV)/.dev ## every engine beside one process: the table of docs/engines.md (half an hour)
	OMP_NUM_THREADS=1 $(BIN)/python tests/engine_table.py

bench: $(VENV)/.bench ## speed of training and prediction beside others (under a quarter of an hour)
	$(BIN)/python benchmarks/train_speed.py --steps 1
	$(BIN)/python benchmarks/predict_speed.py

bench-all: bench ## the other benchmarks that need no data but what they make (hours)
	$(BIN)/python benchmarks/openvino_speed.py
	$(BIN)/python benchmarks/processes.py
	$(BIN)/python benchmarks/memory.py --pairs 1000 10000 100000 1000000 --steps 50
	$(BIN)/python benchmarks/group_memory.py
	$(BIN)/python benchmarks/check.py
	$(BIN)/python benchmarks/mine.py speed
	$(BIN)/python benchmarks/evaluate.py

clean: ## remove the environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
