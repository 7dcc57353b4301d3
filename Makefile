# Two commands: `make run` trains a small GPT-2 end to end, `make test` runs the test suite.
PYTHON ?= python3
BIN := .venv/bin
# Torch first and pinned: with it in place nothing below asks for another build of it.
TORCH := $(shell grep '^torch==' constraints.txt)

.PHONY: run test test-fast test-all test-faults reliability gpu-check standin check install install-dev clean

run: install
	$(BIN)/outpace prepare hellaswag
	$(BIN)/python train.py --recipe quickstart

test: install-dev
	$(BIN)/python -m pytest -n 2

test-fast: install-dev
	$(BIN)/python -m pytest -n 2 -m "not slow and not exhaustive"

# Everything, with what takes long: an hour or more.
test-all: install-dev
	$(BIN)/python -m pytest -n 2 -m "exhaustive or not exhaustive"

test-faults: install-dev
	-$(BIN)/python -m pytest -n 2 tests/faults -m "exhaustive or not exhaustive" --junitxml=.pytest_cache/faults.xml
	PYTHONPATH=. $(BIN)/python benchmarks/faults.py .pytest_cache/faults.xml
	$(BIN)/python benchmarks/render.py

# The figures of docs/reliability.md; PARTS="kills stall" for some of them.
reliability: install-dev
	OMP_NUM_THREADS=1 PYTHONPATH=.:tests:tests/faults $(BIN)/python benchmarks/reliability.py $(PARTS)
	$(BIN)/python benchmarks/render.py

# Tests and measures a GPU within nine minutes; installs nothing. PEERS=DIR OUT=DIR
gpu-check:
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) benchmarks/gpu_check.py

# The GPU's code path on a stand-in that computes nothing (tests/standin/README.md): 5 GB, no GPU.
STANDIN_TORCH ?= torch>=2.11,<2.12
standin: .venv-standin/installed
	OUTPACE_STANDIN=1 LD_LIBRARY_PATH="$(CURDIR)/.venv-standin/standin" XDG_CACHE_HOME="$(CURDIR)/.venv-standin/cache" \
	  .venv-standin/bin/python -m pytest tests/standin tests/gpu/test_gpu_memory.py

.venv-standin/installed: tests/standin/install.py $(wildcard tests/standin/*.[ch])
	$(PYTHON) -m venv .venv-standin
	.venv-standin/bin/pip install -q "$(STANDIN_TORCH)"
	.venv-standin/bin/pip install -q -e ".[interop,fast]" "pytest>=8" pytest-timeout pytest-xdist hypothesis
	.venv-standin/bin/python tests/standin/install.py .venv-standin
	touch $@

check: install-dev
	$(BIN)/ruff check outpace tests benchmarks train.py
	$(BIN)/ruff format --check outpace tests benchmarks train.py
	$(BIN)/python -m mypy
	$(BIN)/python -m pytest tests/architecture

install: .venv/run.installed
install-dev: .venv/dev.installed

# The programs of a .venv name its folder: after a move or a copy they are installed again.
$(shell [ ! -e .venv/run.installed ] || pwd -P | grep -qxFf - .venv/run.installed || \
  rm -f .venv/*.installed .venv/bin/activate)

.venv/bin/activate:
	@$(PYTHON) -c "import outpace"  # tells if it is too old
	$(PYTHON) -m venv .venv

.venv/run.installed: .venv/bin/activate pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt "$(TORCH)"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	pwd -P > $@

.venv/dev.installed: .venv/run.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache
