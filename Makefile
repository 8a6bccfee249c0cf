# Needs make, git and Python >= 3.11. `make help` lists what there is.

VENV := .venv
PY := $(VENV)/bin/python
PYTHONS := $(or $(PYTHON),python3 python3.13 python3.12 python3.11 python)

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup test lint verify bench clean env-test env-dev

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /  make \1	/p' $(MAKEFILE_LIST)
	@echo 'ARGS="..." is handed on: make test ARGS="-k exact", make verify ARGS="--family unhinged".'
	@echo 'PYTHON=... chooses the Python (>= 3.11) the environment is built with.'

setup: env-test ## the environment in .venv: reused while it fits, built anew when what it depends on changed

test: env-test ## the tests
	OPENBLAS_NUM_THREADS=1 $(PY) -m pytest -n auto --maxprocesses 4 --dist loadfile $(ARGS) # one process a core: threads only slow tiny matrices down

lint: env-dev ## style, format, types and the import contract
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright --pythonpath $(PY)
	$(VENV)/bin/lint-imports --no-cache

verify: env-test ## every claim of the literature against numbers; verdicts and figures go to results/
	$(PY) -m experiments verify --out results $(ARGS)

bench: env-test ## the races
	$(PY) -m benchmarks run $(ARGS)

clean: ## remove the environment, caches and builds; results stay
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# What the environment depends on, by content and never by date: this folder, the two files, and the Python
# asked for (else the one it has). A stamp inside .venv keeps it, and is written only when everything is installed.
key = $$({ pwd; cat pyproject.toml constraints.txt; $(1) --version; } 2>/dev/null | cksum)

# A name on the PATH may be a shim that does not run, so each candidate is asked.
suitable = import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))

env-test env-dev: env-%:
	@set -e; key="$(call key,$(or $(PYTHON),$(PY)))"; \
	made_for() { [ "$$(cat $(VENV)/.made-for-$$1 2>/dev/null)" = "$$key" ]; }; \
	if made_for $*; then exit 0; fi; \
	python=; if ! made_for test; then \
	  for python in $(PYTHONS) none; do $$python -c '$(suitable)' 2>/dev/null && break; done; \
	  if [ $$python = none ]; then echo 'Needs Python >= 3.11 with venv; tried: $(PYTHONS). Install one, or give PYTHON=/path/to/python.' >&2; exit 1; fi; \
	fi; \
	rm -f $(VENV)/.made-for-*; \
	if [ "$$python" ]; then echo "Building $(VENV) with $$($$python --version)"; $$python -m venv --clear $(VENV); fi; \
	$(PY) -m pip install --quiet --disable-pip-version-check --editable '.[$*]' --constraint constraints.txt; \
	for extra in test $*; do echo "$(call key,$(PY))" > $(VENV)/.made-for-$$extra; done
