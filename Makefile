# Everything runs in .venv; nothing has to be installed by hand.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
# Two processes of one thread each (tests/conftest.py); a process that runs out of tests takes some of the other's.
PARALLEL ?= -n 2 --dist worksteal

.PHONY: demo test test-slow test-slurm check bench clean

$(VENV)/.installed: setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test,dev]"
	touch $@

demo: $(VENV)/.installed       ## both stages on the embedded sample, then segmentation (about 6 minutes on 2 cores)
	$(BIN)/dinocell demo

test: $(VENV)/.installed       ## the tests of every commit, in two processes (about 5 minutes on 2 cores)
	$(BIN)/python -m pytest -q $(PARALLEL) $(PYTEST_ARGS)

test-slow: $(VENV)/.installed  ## the tests marked slow: whole pipelines, notebooks, thousands of damaged files
	$(BIN)/python -m pytest -q $(PARALLEL) -m "slow and not slurm" $(PYTEST_ARGS)

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
