# make demo   set up .venv, get the model, measure two policies, print the table and write the plot
# make test   set up .venv if needed and run all tests
# make nightly  the long runs: the engine's state machine, sweeps killed over and over
# make lint   formatting, lint and types
# make clean  remove .venv and what tools left behind
#
# PYTHON=python3.12      another interpreter, 3.10 or newer
# TORCH_INDEX=URL        where torch comes from. On Linux plain PyPI gives the CUDA build (gigabytes);
#                        PyTorch's own index for CPU builds gives the small one.

PYTHON ?= python3
PY := .venv/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
INSTALLED := .venv/installed

.PHONY: demo test nightly lint clean

demo: $(INSTALLED)
	$(PY) -m fgbench demo

test: $(INSTALLED)
	$(PY) -m pytest

nightly: $(INSTALLED)
	FGBENCH_NIGHTLY=1 $(PY) -m pytest -rP tests/fgengine/test_state_machine.py tests/fgbench/sweeping/test_killed.py

lint: $(INSTALLED)
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy

$(INSTALLED): pyproject.toml setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "Python 3.10 or newer is needed: make PYTHON=python3.12" >&2; exit 1; }
	test -x $(PY) || $(PYTHON) -m venv .venv
	$(PIP) install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$$(grep '^torch==' constraints.txt)"
	$(PIP) install --quiet -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find bench datasets fgbench fgengine tests -name __pycache__ -prune -exec rm -rf {} +
