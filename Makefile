# make quickstart   a point-cloud policy that opens a door, trained in front of you
# make improve      a policy that picks and places half of the time, and reinforcement learning that makes it better
# make test         lint, types, import contract, tests
# make thorough     the tests that make test leaves out for their length, but for make climb's
# make climb        every fine-tuner on a toy, until it is better than its base: some minutes
PYTHON ?= $(shell command -v python3.11 || command -v python3)
# On Linux PyPI's torch brings CUDA. Without a GPU: make quickstart PIP_ARGS="--index-url https://download.pytorch.org/whl/cpu"
TORCH ?= torch>=2.4,<2.14
PIP_ARGS ?=
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: quickstart improve test thorough install install-dev lint types contract unit climb format clean

# An experiment, or what is left of it
run = if [ -e $(2)/config.yaml ]; then $(BIN)/python train.py resume=$(2); else $(BIN)/python train.py experiment=$(1); fi

quickstart: .venv/.installed
	@$(call run,quickstart,runs/quickstart)

improve: .venv/.installed
	@[ -e runs/pick-place/eval.json ] || { $(call run,improve_base,runs/pick-place); }
	@test -e runs/pick-place/eval.json # an interrupted base is saved, and not built upon
	@[ -e runs/pick-place-residual/eval.json ] || { $(call run,improve,runs/pick-place-residual); }

test: lint types contract unit

install: .venv/.installed

install-dev: .venv/.installed-dev

.venv/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install -q $(PIP_ARGS) "$(TORCH)"
	$(BIN)/pip install -q -e .
	@touch $@

.venv/.installed-dev: .venv/.installed
	$(BIN)/pip install -q -e ".[dev]"
	@touch $@

lint: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install-dev
	$(BIN)/pyright --pythonpath $(BIN)/python

contract: install-dev
	$(BIN)/lint-imports

unit: install-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

thorough: install-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m slow --ignore tests/entry/test_climb.py

climb: install-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m slow tests/entry/test_climb.py

format: install-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .venv-peers build *.egg-info
