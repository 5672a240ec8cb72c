# Every target sets itself up in .venv from nothing; a second call finds that done.
#
#   make demo      trains with and without RankReg, prints the table, saves results and plots
#   make test      lint, all tests with coverage, the C++ tests under AddressSanitizer
#   make bench     benchmarks, under ten minutes; table and plots in runs/bench
#   make sanitize  the C++ tests alone; under ThreadSanitizer and as optimised as what ships, too
#   make sanitize-cuda   the CUDA kernels, in the emulator, under the same sanitizers
#   make coverage-cuda   which lines and branches of the CUDA kernels the emulated tests reach
#   make cuda-library    builds the CUDA library, and loads it into a torch that has CUDA (large)
#   make lint      ruff and clang-format, as they stand in requirements-dev.txt
#   make format    lets both rewrite
#   make clean     removes the build and .venv
#
# PYTHON: the interpreter of .venv (3.11 or newer). ARGS: passed on to the program that is run.

SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
CUDA_VENV ?= .venv-cuda
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
PYTEST := $(BIN)/python -m pytest

# Without a GPU the CUDA library cannot run: the tests compile its kernels in other ways.
RANKREG_CUDA ?= $(if $(shell command -v nvidia-smi),auto,0)

# Stamps: what is older than its cause is done again.
BASE := $(VENV)/.base
DEV := $(VENV)/.dev
BUILT := $(VENV)/.built
BUILD_SOURCES := setup.py pyproject.toml rankreg_ext/_version.py \
    $(wildcard csrc/*.cpp csrc/*/*.cpp csrc/*/*.h csrc/*/*.cu csrc/*/*.cuh)
CXX_SOURCES = $(shell git ls-files -co --exclude-standard -- '*.cpp' '*.h' '*.cu' '*.cuh')

.PHONY: demo test bench bench-pytest lint format sanitize sanitize-cuda coverage-cuda \
    cuda-library clean
.DELETE_ON_ERROR:

demo: $(BUILT)
	$(BIN)/python -m benchmarks.experiments.demo $(ARGS)

test: lint $(BUILT)
	$(PYTEST) -n 2 --dist loadfile --cov --cov-report=term $(ARGS)
	$(MAKE) --no-print-directory sanitize VARIANTS=asan

# ARGS=--resume goes on where an interrupted run stopped.
bench: $(DEV) $(BUILT)
	$(BIN)/python -m benchmarks run --out runs/bench $(ARGS)
	$(BIN)/python -m benchmarks report runs/bench

bench-pytest: $(DEV) $(BUILT)
	$(PYTEST) benchmarks/bench_ops.py --benchmark-only $(ARGS)

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CXX_SOURCES)

format: $(DEV)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_SOURCES)

# ARGS is meant for pytest, not for the C++ driver.
sanitize:
	$(MAKE) -C tests/cpp ARGS=

# The CUDA kernels in the emulator, under AddressSanitizer and UndefinedBehaviorSanitizer.
sanitize-cuda: $(DEV) $(BUILT)
	RANKREG_EMULATOR_SANITIZE=1 \
	LD_PRELOAD="$$(c++ -print-file-name=libasan.so) $$(c++ -print-file-name=libubsan.so)" \
	ASAN_OPTIONS=detect_leaks=0:detect_stack_use_after_return=0 UBSAN_OPTIONS=print_stacktrace=1 \
	$(PYTEST) -n 2 -m "not slow" tests/test_emulator.py $(wildcard tests/test_cuda_*.py)

# Lines and branches of csrc/cuda that the emulated tests reach.
coverage-cuda: $(DEV) $(BUILT)
	rm -rf build/emulator/*_covered
	RANKREG_EMULATOR_COVERAGE=1 $(PYTEST) -q -n 2 $(wildcard tests/test_cuda_*.py)
	$(BIN)/python tests/emulator/coverage.py build/emulator/*_covered

# In a second environment, with a CUDA build of torch (5 GB); no GPU is needed.
CUDA_TORCH ?= 2.14.1
cuda-library: $(DEV)
	test -x $(CUDA_VENV)/bin/python || $(PYTHON) -m venv $(CUDA_VENV)
	$(CUDA_VENV)/bin/python -m pip install --disable-pip-version-check --quiet \
	    torch==$(CUDA_TORCH) "setuptools>=77" wheel "pybind11>=2.13" ninja
	$(BIN)/python tests/cuda_library.py $(CUDA_VENV)/bin/python

clean:
	rm -rf $(VENV) build dist *.egg-info rankreg_ext/*.so rankreg_ext/_build_info.json

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(BASE): requirements.txt | $(BIN)/python
	$(PIP) install -r requirements.txt
	touch $@

$(DEV): requirements-dev.txt $(BASE)
	$(PIP) install -r requirements-dev.txt
	touch $@

$(BUILT): $(BUILD_SOURCES) $(BASE)
	RANKREG_CUDA=$(RANKREG_CUDA) RANKREG_WERROR=1 $(PIP) install --no-build-isolation --no-deps --editable .
	touch $@
