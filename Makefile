# Everything runs in environments inside this folder, made on first use from Python 3.11 alone.
PYTHON ?= python3
VENV := .venv
BASE := .venv-base
BIN := $(VENV)/bin
PIP := -m pip --disable-pip-version-check --quiet
CONSTRAINTS := -c constraints.txt

.PHONY: install demo test test-all test-zoo bench lint clean

install: $(VENV)/.done

$(VENV)/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP) install $(CONSTRAINTS) torch
	$(BIN)/python $(PIP) install $(CONSTRAINTS) -e ".[train,report,dev]"
	touch $@

# The base install alone: the deciding half has to work without PyTorch.
$(BASE)/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(BASE)
	$(BASE)/bin/python $(PIP) install $(CONSTRAINTS) -e . pytest hypothesis scikit-learn
	touch $@

demo: install
	$(BIN)/quorate demo

test: install $(BASE)/.done
	$(BIN)/python -m pytest
	$(BASE)/bin/python -m pytest -m "deciding and not slow" --require-no-torch

test-all: install $(BASE)/.done lint
	$(BIN)/python -m pytest -m ""
	$(BASE)/bin/python -m pytest -m deciding --require-no-torch

# Every model of the package, counted and packed in full.
test-zoo: install
	$(BIN)/python -m pytest tests/packed tests/models -m ""

bench: install
	$(BIN)/python benchmarks/deciding.py
	$(BIN)/python benchmarks/tables.py --digits

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) $(BASE) .pytest_cache .mypy_cache .ruff_cache .hypothesis
