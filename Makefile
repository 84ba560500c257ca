# make quickstart   a point-cloud policy that opens a door, trained in front of you
# make improve      a policy that picks and places half of the time, and reinforcement learning that makes it better
# make robot        a simulated UR5e over its real protocol: a scripted hand is recorded, a policy trained and deployed
# make test         lint, types, import contract, tests
# make thorough     the tests that make test leaves out for their length, but for make climb's
# make climb        every fine-tuner on a toy, until it is better than its base: some minutes
PYTHON ?= $(shell command -v python3.11 || command -v python3)
# On Linux PyPI's torch brings CUDA. Without a GPU: make quickstart PIP_ARGS="--index-url https://download.pytorch.org/whl/cpu"
TORCH ?= torch>=2.4,<2.14
PIP_ARGS ?=
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: quickstart improve robot test thorough install install-dev lint types contract unit climb format clean

# An experiment, or what is left of it
run = if [ -e $(2)/config.yaml ]; then $(BIN)/python train.py resume=$(2); else $(BIN)/python train.py experiment=$(1); fi

quickstart: .venv/.installed
	@$(call run,quickstart,runs/quickstart)

improve: .venv/.installed
	@[ -e runs/pick-place/eval.json ] || { $(call run,improve_base,runs/pick-place); }
	@test -e runs/pick-place/eval.json # an interrupted base is saved, and not built upon
	@[ -e runs/pick-place-residual/eval.json ] || { $(call run,improve,runs/pick-place-residual); }

R := runs/robot
EPISODES := 100
robot: .venv/.installed-dev
	@have=$$(ls -d $(R)/recordings/episode_* 2>/dev/null | wc -l); [ $$have -ge $(EPISODES) ] || \
	$(BIN)/python -m real_robot.record robot=ur_sim teleop=hand teleop.seed=$$have episodes=$$(($(EPISODES) - have)) out=$(R)/recordings
	@$(BIN)/python -m real_robot.episodes export $(R)/recordings out=$(R)/cube.zarr hz=10
	@if [ -e $(R)/policy/config.yaml ]; then $(BIN)/python train.py resume=$(R)/policy; else \
	$(BIN)/python train.py data.path=$(R)/cube.zarr obs=state "obs.keys=[agent_pos,cube]" algo.train_steps=8000 \
	eval.n_episodes=0 run_dir=$(R)/policy; fi
	@$(BIN)/python -m real_robot.deploy checkpoint=$(R)/policy robot=ur_sim mode=rtc policy.overrides.n_inference_steps=4 trials=50

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
