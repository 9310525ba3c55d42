# make chat: from nothing to a first answer.  make test: the tests.  make check: everything that CI runs.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt

# Where there is a C++ compiler, training compiles the LLM.
COMPILE := $(if $(shell command -v g++),compile=true)

.PHONY: chat test check lint types parts llava-smol llava-smol-night clean

chat: .venv/core
	$(BIN)/llava chat llava-smol --image examples/tiger.png --prompt "What is this?"

test: .venv/dev parts
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --cov --cov-report=term

check: lint types test

lint: .venv/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: .venv/dev
	$(BIN)/mypy

# The pinned pre-trained parts and the benchmark, into the user's cache folder.
parts: .venv/core
	$(BIN)/python -m llava.fetch

data/llava-smol: | .venv/dev
	$(BIN)/python scripts/smol_data.py data/llava-smol

runs/llava-smol-match/run.json: | data/llava-smol
	$(BIN)/llava train recipes/llava-smol-match.yaml

runs/llava-smol-align/run.json: runs/llava-smol-match/run.json
	$(BIN)/llava train recipes/llava-smol-align.yaml $(COMPILE)

runs/llava-smol-finetune/run.json: runs/llava-smol-align/run.json
	$(BIN)/llava train recipes/llava-smol-finetune.yaml $(COMPILE)

runs/llava-smol-finetune-2/run.json: runs/llava-smol-finetune/run.json
	$(BIN)/llava train recipes/llava-smol-finetune-2.yaml $(COMPILE)

runs/llava-smol-finetune-3/run.json: runs/llava-smol-finetune-2/run.json
	$(BIN)/llava train recipes/llava-smol-finetune-3.yaml $(COMPILE)

# Retrain the embedded model from scratch, by both stages, as far as a hundred minutes go.
llava-smol: runs/llava-smol-finetune/run.json
	@echo "Trained. Talk to it: llava chat runs/llava-smol-finetune --image examples/tiger.png"

# Go on to what the package comes with, and put it there. Interrupted, both go on; to begin anew, delete runs/llava-smol-*.
llava-smol-night: runs/llava-smol-finetune-3/run.json
	$(BIN)/python scripts/embed_model.py runs/llava-smol-finetune-3 llava/embedded/llava-smol

clean:
	rm -rf .venv build dist *.egg-info

.venv/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "llava needs Python 3.10 or newer; choose one with: make PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv .venv
	@touch $@

.venv/core: .venv/python pyproject.toml constraints.txt
	@echo "Installing llava and PyTorch into .venv (a few minutes) ..."
	$(PIP) --editable .
	@touch $@

.venv/dev: .venv/core
	@echo "Installing what the tests and training need ..."
	$(PIP) --editable '.[dev]'
	@# What pip does on one core, without what is hardly used. Some files do not compile.
	-@$(BIN)/python -W ignore -m compileall -qq -j 2 -x '/tests?/|transformers/models/' .venv/lib
	@touch $@
