# Everything runs in environments inside this folder, made on first use from Python 3.11 alone.
PYTHON ?= python3
VENV := .venv
BASE := .venv-base
ZOO := .venv-zoo
TU := .venv-tu
BIN := $(VENV)/bin
PIP := -m pip --disable-pip-version-check --quiet
CONSTRAINTS := -c constraints.txt

.PHONY: install demo test test-all test-zoo bench bench-tu lint clean

install: $(VENV)/.done

$(VENV)/.done: pyproject.toml constraints.txt
	@echo "installing into $(VENV): some minutes, about 2 GB"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP) install $(CONSTRAINTS) torch
	$(BIN)/python $(PIP) install $(CONSTRAINTS) -e ".[train,report,dev]"
	touch $@

# The base install alone: the deciding half has to work without PyTorch.
$(BASE)/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(BASE)
	$(BASE)/bin/python $(PIP) install $(CONSTRAINTS) -e . pytest pytest-xdist hypothesis scikit-learn
	touch $@

demo: install
	$(BIN)/quorate demo

# One process per core, each with one thread; the files of the tests stay whole. Tests of the deciding half run where PyTorch is not;
# test-all runs them in both.
test: install $(BASE)/.done
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and (not deciding or extras)" -n auto --dist loadfile
	OMP_NUM_THREADS=1 $(BASE)/bin/python -m pytest -m "deciding and not slow" --require-no-torch -n auto --dist loadfile

test-all: install $(BASE)/.done lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "" -n auto --dist loadfile
	OMP_NUM_THREADS=1 $(BASE)/bin/python -m pytest -m deciding --require-no-torch -n auto --dist loadfile

# Every model of the package, counted and packed in full, and the adapters on real timm, torchvision and transformers. They live in an
# environment of their own: torchvision may be built for another PyTorch (the tests declare the two operators it then lacks).
test-zoo: $(ZOO)/.done
	PYTHONPATH=src $(ZOO)/bin/python -m pytest tests/packed tests/models -m ""

$(ZOO)/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(ZOO)
	$(ZOO)/bin/python $(PIP) install $(CONSTRAINTS) torch==2.13.0
	$(ZOO)/bin/python $(PIP) install --no-deps torchvision==0.28.0 timm==1.0.31 transformers==5.23.0
	$(ZOO)/bin/python $(PIP) install $(CONSTRAINTS) "tokenizers>=0.23.1,<0.24" regex huggingface-hub pyyaml safetensors pillow numpy \
		packaging typer tqdm requests lightning torchmetrics pytest hypothesis scipy scikit-learn "jsonargparse[signatures]" rich \
		onnx onnxscript onnxruntime tensorboard
	touch $@

# Packed networks against torch-uncertainty's, in an environment of its own.
bench-tu: $(TU)/.done
	PYTHONPATH=src $(TU)/bin/python benchmarks/packed_training.py

$(TU)/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(TU)
	$(TU)/bin/python $(PIP) install $(CONSTRAINTS) torch==2.13.0
	$(TU)/bin/python $(PIP) install --no-deps torchvision==0.28.0 torch-uncertainty==0.13.0 timm==1.0.20
	$(TU)/bin/python $(PIP) install $(CONSTRAINTS) numpy scipy lightning torchmetrics "jsonargparse[signatures]" rich safetensors onnx \
		onnxscript onnxruntime einops seaborn pillow huggingface-hub scikit-learn pytest hypothesis
	touch $@

bench: install
	$(BIN)/python benchmarks/deciding.py
	$(BIN)/python benchmarks/tables.py --digits
	$(BIN)/python benchmarks/input_folder.py
	$(BIN)/python benchmarks/shift.py digits
	$(BIN)/python benchmarks/packed_inference.py
	$(BIN)/python benchmarks/packed_members.py
	$(BIN)/python benchmarks/cascade_scale.py
	$(BIN)/python benchmarks/cascade_planner.py
	$(BIN)/python benchmarks/cascade_guarantee.py
	$(BIN)/python benchmarks/runtime_speed.py
	$(BIN)/python benchmarks/runtime_speed.py --batches 1 --no-overhead --suffix=-batch1
	$(BIN)/python benchmarks/runtime_load.py
	$(BIN)/python benchmarks/runtime_size.py
	$(BIN)/python benchmarks/sparse_runtime.py

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) $(BASE) $(ZOO) $(TU) .pytest_cache .mypy_cache .ruff_cache .hypothesis
