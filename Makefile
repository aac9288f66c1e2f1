# The two commands of the README, from a bare checkout: `make demo` and `make test`. Everything goes into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DOCS := NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
# Of `make fuzz` and `make fuzz-operators`.
MINUTES ?= 5
# Suites for every change, texts whose spelling is checked, and sources that bandit scans.
FAST := tests/budgets tests/ops/test_multi_l1.py tests/ops/test_pointwise.py tests/losses/test_gan.py \
	tests/losses/test_feature_matching.py tests/losses/test_objective.py tests/models tests/test_files.py
PROSE := README.md CONTRIBUTING.md CHANGELOG.md SECURITY.md docs examples pix2pixhd csrc tests benchmarks build_tools setup.py Makefile .github
SCANNED := pix2pixhd build_tools benchmarks examples setup.py
SOURCES := $(wildcard csrc/*.h csrc/*.cpp csrc/*/*.h csrc/*/*.cpp csrc/*/*.cu csrc/*/*.cuh)

.PHONY: help demo test test-fast build docs gpu lint audit format sanitize soak fuzz fuzz-operators dist matrix arm bench bench-report clean

help:
	@echo "make demo       set everything up, build, train on photographs, write results to demo_out/"
	@echo "make test       set everything up, build, run all tests"
	@echo "make test-fast  the tests of operators, losses and models, in under 90 seconds"
	@echo "make fuzz       compare random cases of all operators with PyTorch, for MINUTES=5"
	@echo "make build      rebuild the extension after a change in csrc/"
	@echo "make docs       build the documentation in site/"
	@echo "make lint       ruff, mypy, bandit, imports, clang-format, spelling, wording, documentation"
	@echo "make audit      look for known vulnerabilities in the dependencies; needs PyPI"
	@echo "make format     rewrite the sources in the project's format"
	@echo "make sanitize   run the operators with AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer"
	@echo "make soak       inject hundreds of faults into training runs; SEED=n repeats them, N=n is their number"
	@echo "make fuzz-operators MINUTES=20  call every operator with random arguments"
	@echo "make dist       build the source distribution and wheels in dist/, and check them"
	@echo "make matrix     install the package in many environments; hours, and many gigabytes"
	@echo "make arm        run the CPU kernels for 64-bit Arm under an emulator"
	@echo "make bench      run the benchmark suite on this machine"
	@echo "make bench-report  measure the tables and charts of the documentation; half an hour"
	@echo "make gpu        on a machine with a GPU: build, test and measure"

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

test-fast: $(VENV)/.dev
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile -q -m 'not slow' $(FAST)

fuzz: $(VENV)/.dev
	$(BIN)/python -m tests.numerics.fuzz --minutes $(MINUTES)

build: $(VENV)/.dev
	$(BIN)/python setup.py build_ext --inplace

docs: $(VENV)/.dev
	$(DOCS)

bench-report: $(VENV)/.dev
	$(BIN)/python benchmarks/bench_report.py --measure

gpu: $(VENV)/.dev
	$(BIN)/python benchmarks/gpu.py

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive $(SCANNED)
	$(BIN)/lint-imports --config pyproject.toml
	$(BIN)/clang-format --dry-run --Werror $(SOURCES)
	$(BIN)/codespell $(PROSE)
	$(BIN)/python -m build_tools.check_prose
	$(DOCS)

audit: $(VENV)/.dev
	$(BIN)/python -m build_tools.audit

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(SOURCES)

sanitize: $(VENV)/.dev
	$(BIN)/python -m build_tools.sanitize

N ?= 200
soak: $(VENV)/.dev
	$(BIN)/python -m tests.soak --injections $(N) $(if $(SEED),--seed $(SEED))

fuzz-operators: $(VENV)/.dev
	$(BIN)/python -m tests.fuzz_operators --minutes $(MINUTES)

$(VENV)/.dist: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable ".[dist]"
	@touch $@

# PYTHONS: further Pythons to build wheels for, each with torch, pybind11, ninja and setuptools.
dist: $(VENV)/.dist
	$(BIN)/python -m build_tools.dist $(foreach python,$(PYTHONS),--python $(python))

arm: $(VENV)/.torch
	$(BIN)/python -m build_tools.cpu_harness --arm
	$(BIN)/python -m build_tools.cpu_harness --no-bmi

matrix: $(VENV)/.dist arm
	$(BIN)/python -m build_tools.matrix

bench: $(VENV)/.dev
	$(BIN)/python -m pytest benchmarks

clean:
	rm -rf $(VENV) build dist *.egg-info pix2pixhd/*.so demo_out runs site
