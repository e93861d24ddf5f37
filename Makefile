# Everything runs in .venv; nothing has to be installed by hand.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
# Two processes of one thread each (tests/conftest.py); a process that runs out of tests takes some of the other's.
PARALLEL ?= -n 2 --dist worksteal
# napari and Qt have an environment of their own, so that nothing else can come to need them.
NAPARI ?= .venv-napari
SCREEN  = xvfb libegl1 libgl1 libopengl0 libdbus-1-3 libxkbcommon-x11-0 libxcb-cursor0 libxcb-icccm4 libxcb-image0 \
	libxcb-keysyms1 libxcb-randr0 libxcb-render-util0 libxcb-shape0 libxcb-xinerama0 libxcb-xkb1

.PHONY: demo test test-slow test-napari test-slurm check bench clean

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

$(NAPARI)/.installed: setup.py constraints.txt
	$(PYTHON) -m venv $(NAPARI)
	$(NAPARI)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test-napari]"
	touch $@

test-napari: $(NAPARI)/.installed ## the plugin in a real napari on a screen in memory; a skipped test is a failure
	@command -v xvfb-run >/dev/null || { test "$$(id -u)" = 0 && apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $(SCREEN) >/dev/null; } || \
		{ echo "test-napari needs a screen in memory: apt-get install $(SCREEN)"; exit 1; }
	xvfb-run -a $(NAPARI)/bin/python -m pytest -q -m "not slow" --no-skips tests/napari

test-slurm: $(VENV)/.installed ## both stages on a two-node SLURM that the tests start here (needs slurm-wlm and munge)
	$(BIN)/python -m pytest -q -m slurm tests/slurm

check: $(VENV)/.installed      ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed      ## the benchmarks that need no peer environment
	for name in augment metrics objectives ssl_step finetune_step; do $(BIN)/python benchmarks/$$name.py || exit 1; done

clean:
	rm -rf $(VENV) $(NAPARI) build *.egg-info
