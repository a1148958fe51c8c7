# make serve and make test set up .venv by themselves; everything else is in the README.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
RUN := $(VENV)/bin/python
IPEX_VENV := .venv-ipex
GPU_VENV := build/gpu

.PHONY: serve test test-ipex test-gpu fuzz fuzz-api screenshots gpu-venv lint venv clean

serve: venv
	$(RUN) -m server

test: lint
	$(RUN) -m pytest --cov --cov-report=term

# The oldest torch that is supported, 2.8, with Intel's extension for it: in an environment of its own. Training in a
# process of its own, too: the extension, once imported, puts a layer norm in place that cannot be trained through.
test-ipex: $(IPEX_VENV)/.installed
	$(IPEX_VENV)/bin/python -m pytest --ignore tests/scripts/test_train_demo.py
	$(IPEX_VENV)/bin/python -m pytest tests/scripts/test_train_demo.py

$(IPEX_VENV)/.installed: setup.cfg pyproject.toml constraints-ipex.txt
	$(PYTHON) -m venv $(IPEX_VENV)
	PIP_CONSTRAINT=constraints-ipex.txt $(IPEX_VENV)/bin/python -m pip install --disable-pip-version-check --quiet \
		--editable '.[ipex,dev]'
	touch $@

# Inputs that reach ever new code of the form reader and of the way of a picture; SECONDS is how long for each of both.
fuzz: venv
	PIP_CONSTRAINT=constraints.txt $(RUN) -m pip install --disable-pip-version-check --quiet --editable '.[fuzz]'
	$(RUN) -m scripts.fuzz_inputs forms $(if $(SECONDS),--seconds $(SECONDS))
	$(RUN) -m scripts.fuzz_inputs images $(if $(SECONDS),--seconds $(SECONDS))

# Random requests against a live server; SECONDS is how long.
fuzz-api: venv
	$(RUN) -m scripts.fuzz_api $(if $(SECONDS),--seconds $(SECONDS))

screenshots: venv
	$(RUN) -m pytest -m browser tests/browser/test_app.py --screenshots docs

# On a machine without network: WHEELS is a folder made by scripts.gpu_wheels, PYTHON an interpreter that has torch and
# torchvision. The tests then run in an environment of their own that sees the packages of that interpreter.
test-gpu: $(if $(WHEELS),gpu-venv,venv)
	$(if $(WHEELS),$(GPU_VENV),$(VENV))/bin/python -m pytest -m gpu tests/gpu

gpu-venv:
	$(PYTHON) -m venv --clear --system-site-packages $(GPU_VENV)
	$(GPU_VENV)/bin/python -c "import torch, torchvision" || { echo "$(PYTHON) has no torch with torchvision that a new \
	environment sees: set PYTHON to the interpreter they are installed for, not to one of a virtual environment." >&2; exit 1; }
	$(GPU_VENV)/bin/python -m pip install --disable-pip-version-check --quiet --no-index --find-links $(WHEELS) \
		--requirement $(WHEELS)/requirements.txt

lint: venv
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

venv: $(VENV)/.installed

$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	PIP_CONSTRAINT=constraints.txt $(RUN) -m pip install --disable-pip-version-check --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) $(IPEX_VENV) .mypy_cache .pytest_cache .ruff_cache .coverage build *.egg-info
