# The two commands of the README, from a bare checkout: `make demo` and `make test`. Everything goes into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := $(wildcard csrc/*.h csrc/*.cpp csrc/*/*.h csrc/*/*.cpp csrc/*/*.cu csrc/*/*.cuh)

.PHONY: help demo test lint format bench clean

help:
	@echo "make demo    set everything up, build, train on real photographs, show results (demo_out/)"
	@echo "make test    set everything up, build, run all tests"
	@echo "make lint    ruff, mypy, clang-format"
	@echo "make format  rewrite the sources in the project's format"
	@echo "make bench   the benchmark suite on this machine"

# torch goes in first and the package is built against it, not in a build environment with a second copy of torch.
$(VENV)/.torch:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "Python 3.10 or newer is needed; try: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
		{ echo "$(PYTHON) -m venv does not work here; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "torch>=2.10" torchvision "setuptools>=77" "pybind11>=2.13" ninja
	@touch $@

# nvcc where there is a GPU and no CUDA toolkit: without a build environment of its own pip does not ask for it.
$(VENV)/.nvcc: $(VENV)/.torch
	@packages=$$($(BIN)/python -m build_tools.backend) && \
		if [ -n "$$packages" ]; then $(BIN)/python -m pip install --quiet $$packages; fi
	@touch $@

$(VENV)/.demo: $(VENV)/.nvcc pyproject.toml setup.py $(wildcard build_tools/*.py) pix2pixhd/__init__.py $(SOURCES)
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable ".[train,demo]"
	@touch $@

$(VENV)/.dev: $(VENV)/.nvcc pyproject.toml setup.py $(wildcard build_tools/*.py) pix2pixhd/__init__.py $(SOURCES)
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable ".[dev]"
	@touch $@

demo: $(VENV)/.demo
	$(BIN)/pix2pixhd doctor
	$(BIN)/pix2pixhd demo --out demo_out

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --durations 25

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --config pyproject.toml
	$(BIN)/clang-format --dry-run --Werror $(SOURCES)

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(SOURCES)

bench: $(VENV)/.dev
	$(BIN)/python -m pytest benchmarks

clean:
	rm -rf $(VENV) build dist *.egg-info pix2pixhd/*.so demo_out runs
