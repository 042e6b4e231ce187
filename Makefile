PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
REPORT ?= demo-report
export HF_HUB_OFFLINE = 1

.PHONY: demo test lint docs-check build clean

demo: $(VENV)/.installed  ## grow a bank, train with and without it, write $(REPORT)/report.html
	$(BIN)/monai-diverse demo --out $(REPORT)

test: $(VENV)/.installed  ## run the tests
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal

lint: $(VENV)/.installed  ## style, types, direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs-check: $(VENV)/.installed  ## the README's and the docs' commands, names and links exist
	$(BIN)/python -m pytest tests/test_docs.py

build: $(VENV)/.installed  ## the wheel, in dist/
	rm -rf build dist
	$(BIN)/python -m build --wheel

$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
