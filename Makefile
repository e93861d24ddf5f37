# Everything runs in .venv; nothing has to be installed by hand.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin

.PHONY: demo test test-slurm check bench clean

$(VENV)/.installed: setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test,dev]"
	touch $@

demo: $(VENV)/.installed       ## both stages on the embedded sample, then segmentation (about 6 minutes on 2 cores)
	$(BIN)/dinocell demo

test: $(VENV)/.installed       ## the test suite but for tests/slurm
	$(BIN)/python -m pytest -q $(PYTEST_ARGS)

test-slurm: $(VENV)/.installed ## both stages on a two-node SLURM that the tests start here (needs slurm-wlm and munge)
	$(BIN)/python -m pytest -q -m slurm tests/slurm

check: $(VENV)/.installed      ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed      ## the benchmarks that need no peer environment
	for name in augment metrics objectives ssl_step finetune_step; do $(BIN)/python benchmarks/$$name.py || exit 1; done

clean:
	rm -rf $(VENV) build *.egg-info
