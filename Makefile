# Two commands: `make run` trains a small GPT-2 end to end, `make test` runs the whole suite.
PYTHON ?= python3
BIN := .venv/bin
# Torch first and pinned: with it in place nothing below asks for another build of it.
TORCH := $(shell grep '^torch==' constraints.txt)

.PHONY: run test test-fast check install install-dev clean

run: install
	$(BIN)/outpace prepare hellaswag
	$(BIN)/python train.py --recipe quickstart

test: install-dev
	$(BIN)/python -m pytest -n 2

test-fast: install-dev
	$(BIN)/python -m pytest -n 2 -m "not slow"

check: install-dev
	$(BIN)/ruff check outpace tests benchmarks train.py
	$(BIN)/ruff format --check outpace tests benchmarks train.py
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/architecture

install: .venv/run.installed
install-dev: .venv/dev.installed

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/run.installed: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt "$(TORCH)"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/dev.installed: .venv/run.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache
