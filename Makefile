# Every target works on a fresh machine with Python 3.11+ (headers, venv), git, make and a C/C++ compiler.
# `make PYTHON=python3.12 …` chooses another Python; CMAKE_ARGS chooses a GPU backend (`make help`).

SHELL := /bin/sh
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
# A world is one seed: `make sim SEEDS=10000 FROM=1`.
SEEDS ?= 10000
# What `make bench-policies` runs; it goes on where it stopped: `make bench-policies INSTANCES=200 MINUTES=90`.
INSTANCES ?= 200
MINUTES ?= 30
FROM ?= 1
# A storm is one seed too, and goes on where it was broken off: `make storm FAULTS=1000 SEED=7`. SOAK is in minutes.
FAULTS ?= 200
SEED ?= 7
SOAK ?= 30

# `make test -j` would start the tests before the check has ended.
.NOTPARALLEL:
.PHONY: help setup tools demo test check format bench bench-policies sim chaos storm lock clean

help:
	@echo 'make demo     set up, then a server on a virtual card: four images, two kills, a guest; STAY=--stay leaves it up'
	@echo 'make test     set up, check, and run all tests'
	@echo 'make setup    virtual environment, native engines, demo models; does only what is out of date'
	@echo 'make check    format, lint, types, import contracts, tidiness (no native build)'
	@echo 'make format   let ruff rewrite the files'
	@echo 'make bench    run the benchmarks and write their tables into bench/'
	@echo 'make bench-policies  compare policies in the simulator: INSTANCES=$(INSTANCES) MINUTES=$(MINUTES), resumable'
	@echo 'make sim      simulated worlds: SEEDS=$(SEEDS) of them FROM=$(FROM)'
	@echo 'make chaos    what make test samples, complete; then a soak of SOAK=$(SOAK) minutes, then the storm; long'
	@echo 'make storm    FAULTS=$(FAULTS) of SEED=$(SEED) on a real server with images and chats: kills, refusals, guests, restarts; goes on where it broke off'
	@echo 'make lock     resolve the dependencies again'
	@echo 'make clean    remove .venv and tool caches; models and native builds stay in the cache folder'
	@echo
	@echo 'A GPU backend: CMAKE_ARGS=-DSD_CUDA=ON make setup   (also SD_VULKAN, SD_HIPBLAS, SD_METAL)'

setup:
	@$(PYTHON) scripts/bootstrap.py

tools:
	@$(PYTHON) scripts/bootstrap.py --tools

demo: setup
	@$(BIN)/tidegate demo $(STAY)

test: setup check
	@echo 'test: all tests but those of `make chaos`'
	@$(BIN)/python -m pytest --refuse-skips -m 'not chaos'

check: tools
	@echo 'check: format'
	@$(BIN)/ruff format --check --quiet .
	@echo 'check: lint'
	@$(BIN)/ruff check --quiet .
	@echo 'check: types'
	@$(BIN)/mypy
	@echo 'check: import contracts'
	@$(BIN)/lint-imports --no-logo
	@echo 'check: tidiness'
	@$(BIN)/python -m pytest -q tests/test_tidy.py

format: tools
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: setup
	@echo 'bench: this takes a while; tables go to bench/'
	@$(BIN)/python scripts/bench.py

bench-policies: tools
	@echo 'bench-policies: $(INSTANCES) instances of each workload and card, for at most $(MINUTES) minutes'
	@PYTHONPATH=bench:tests $(BIN)/python bench/policies/run.py --seeds $(INSTANCES) --minutes $(MINUTES)

sim: tools
	@echo 'sim: $(SEEDS) worlds from seed $(FROM)'
	@$(BIN)/python -m tests.sim --from $(FROM) --seeds $(SEEDS)

chaos: setup
	@echo 'chaos: every sampler, size of card, refused allocation and nonsense; queues of a hundred jobs; this takes long'
	@$(BIN)/python -m pytest --refuse-skips -m chaos
	@$(BIN)/python -m tests.chaos.soak --minutes $(SOAK)
	@$(MAKE) --no-print-directory storm

storm: setup
	@PYTHONPATH=tests $(BIN)/python -m tests.chaos --resume --faults $(FAULTS) --seed $(SEED)

LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header

lock: tools
	@echo 'lock: resolving requirements/*.txt (UPGRADE=--upgrade takes newer versions)'
	@$(LOCK) $(UPGRADE) requirements/bootstrap.in -o requirements/bootstrap.txt
	@$(LOCK) $(UPGRADE) requirements/native.in -o requirements/native.txt
	@$(LOCK) $(UPGRADE) pyproject.toml --group dev -c requirements/bootstrap.txt -o requirements/dev.txt

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist build
