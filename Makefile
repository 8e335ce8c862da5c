# Every target does its own set-up, in .venv: `make train` works on a machine with Python and make.

PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python

.PHONY: train test faults lint format clean bench bench-quick bench-ops bench-accuracy bench-sweep bench-gpu

train: $(VENV)/.installed
	$(RUN) -m experiments.train

test: $(VENV)/.installed-test
	$(RUN) -m pytest --numprocesses 2 --dist loadfile

# Kills, fills and corrupts, as often as docs/reliability.md says: about an hour, with strace.
faults: $(VENV)/.installed-test
	$(RUN) -m pytest tests/faults --faults=full

lint: $(VENV)/.installed-lint
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/pyright

# Each writes its results as JSON into benchmarks/results and says where;
# `python -m benchmarks.page FILES` makes docs/performance.md of them.
bench: $(VENV)/.installed-bench
	$(RUN) -m benchmarks.networks

bench-quick: $(VENV)/.installed-bench
	$(RUN) -m benchmarks.networks --networks=lenet,wrn_16_4,mobilenet_v2 --batch=8 --only=train \
		--competitors=linen,torch_channels_last --rounds=3 --seconds=8

bench-ops: $(VENV)/.installed-bench
	$(RUN) -m benchmarks.ops

bench-accuracy: $(VENV)/.installed-bench
	$(RUN) -m benchmarks.accuracy --config.augment.parts=flip

bench-sweep: $(VENV)/.installed-bench
	$(RUN) -m benchmarks.sweep

bench-gpu: $(VENV)/.installed-bench
	$(RUN) -m benchmarks.gpu

format: $(VENV)/.installed-lint
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "convjax needs Python 3.11 or newer: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

$(VENV)/.installed-bench: $(VENV)/.installed
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable '.[bench]'
	touch $@

# The type checker reads tests and benchmarks too, and so needs what they import.
$(VENV)/.installed-lint: $(VENV)/.installed-test $(VENV)/.installed-bench
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable '.[lint]'
	touch $@
