# make demo     set up .venv, pull the model, measure two policies, print the table and write the plot
# make test     set up .venv if needed, and run all tests
# make test-fast  run the tests that take less than a minute together, and need no model
# make nightly  run the long tests: the engine's state machine, 10,000 odd requests, sweeps that are killed many times
# make lint     check formatting, lint and types
# make docs     write docs/cli.md and docs/metrics.md from the code, and build the site into site/
# make clean    remove .venv and files that tools created
#
# PYTHON=python3.12      use another interpreter, 3.10 or newer. A .venv of another Python version is created again.
# TORCH_INDEX=URL        install torch from this package index. By default, Linux machines without an NVIDIA GPU use the
#                        CPU build from PyTorch's index, and other machines use pip's usual index. An empty value
#                        (TORCH_INDEX=) always selects pip's usual index.

PY := .venv/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
INSTALLED := .venv/installed
NVIDIA_DEVICE := /dev/nvidiactl
CPU_INDEX := https://download.pytorch.org/whl/cpu
CUDA_SIZE := a 1.6 GB download that takes 5 GB of disk

version = $(shell $(1) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)

# An existing .venv is used with any Python version, unless PYTHON selects another one.
ifeq ($(origin PYTHON),undefined)
PYTHON := python3
VERSION := $(or $(call version,$(PY)),$(call version,$(PYTHON)),-unknown)
else
VERSION := $(or $(call version,$(PYTHON)),-unknown)
endif

.PHONY: demo test test-fast nightly lint docs clean

demo: $(INSTALLED)
	$(PY) -m fgbench demo

# One process more than there are cores, because tests often wait for a server or for the network. The tests of one
# group stay together, since they share a fixture that takes long.
PYTEST = $(PY) -m pytest -n $$(( $$(getconf _NPROCESSORS_ONLN) + 1 )) --dist loadgroup

test: $(INSTALLED)
	$(PYTEST)

test-fast: $(INSTALLED)
	$(PYTEST) -m "not e2e and not slow"

nightly: $(INSTALLED)
	FGBENCH_NIGHTLY=1 $(PY) -m pytest -rP tests/fgengine/test_state_machine.py \
		tests/fgengine/server/test_fuzz.py tests/fgengine/server/test_leaving.py tests/fgbench/sweeping/test_killed.py

lint: $(INSTALLED)
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy

docs: $(INSTALLED)
	$(PY) -m fgbench.cli.page > docs/cli.md
	$(PY) -m fgbench.metrics.page > docs/metrics.md
	$(PY) -m mkdocs build --strict

.venv/bin/python$(VERSION):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "'$(PYTHON)' is not Python 3.10 or newer: name one that is, as in 'make PYTHON=python3.12'." >&2; exit 1; }
	@test ! -e .venv || echo "Making .venv again, with Python $(VERSION)."
	$(PYTHON) -m venv --clear .venv
	@test -e $@ || ln -s python $@

$(INSTALLED): .venv/bin/python$(VERSION) pyproject.toml setup.py constraints.txt
	@$(INSTALL_TORCH)
	@echo "Installing the versions of constraints.txt into .venv."
	@$(PIP) install --quiet -c constraints.txt -e '.[dev]' || { echo "$(FAILED)" >&2; exit 1; }
	touch $@

FAILED := The installation failed, for the reason above: check that pip reaches its package index and that 6 GB of \
disk are free, then try 'make clean' and a Python between 3.10 and 3.13, as in 'make PYTHON=python3.12'.

# Only torch comes from an index of torch builds. Its dependencies come from pip's usual index, at the pinned versions.
TORCH_FROM = $(PIP) install --no-deps "$$(grep '^torch==' constraints.txt)" --index-url
ifeq ($(origin TORCH_INDEX),undefined)
# Short timeout and no retries: if the network blocks the index, this must not take minutes.
INSTALL_TORCH = if test "$$(uname -s)" = Linux && ! nvidia-smi -L >/dev/null 2>&1 && ! test -e $(NVIDIA_DEVICE); then \
	echo "No NVIDIA GPU here: installing the CPU build of torch from $(CPU_INDEX)."; \
	$(TORCH_FROM) $(CPU_INDEX) -qq --timeout 10 --retries 0 || echo "That index does not answer, or has no build" \
	"for this Python: pip takes the torch of its usual index. On PyPI that is the build for CUDA, $(CUDA_SIZE)."; fi
else ifneq ($(TORCH_INDEX),)
INSTALL_TORCH = $(TORCH_FROM) $(TORCH_INDEX) --quiet \
	|| { echo "There is no fitting torch at $(TORCH_INDEX): check TORCH_INDEX, or leave it out." >&2; exit 1; }
else
INSTALL_TORCH = :
endif

clean:
	rm -rf .venv build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find bench datasets fgbench fgengine tests -name __pycache__ -prune -exec rm -rf {} +
