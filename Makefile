# Two commands and nothing before them: `make serve` and `make test`.
# Each makes .venv once, from the lock files; an unchanged lock is never installed twice.

HOST ?= 127.0.0.1
PORT ?= 8000
VENV := .venv

# The first Python at hand that is 3.11, 3.12 or 3.13 (a pyenv shim may exist and still not run, so each one is asked).
SUPPORTED := import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11 python; do \
	"$$python" -c '$(SUPPORTED)' >/dev/null 2>&1 && { echo "$$python"; break; }; done)

.PHONY: serve test check lock clean

serve: $(VENV)/.installed
	@$(VENV)/bin/ganserve serve --host $(HOST) --port $(PORT)

test: $(VENV)/.installed-dev
	$(VENV)/bin/python -m pytest --numprocesses 2 --dist worksteal $(PYTEST_ARGS)

check: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/python -m pytest -q tests/test_policy.py

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "ganserve needs Python 3.11, 3.12 or 3.13 (with its venv module) and found none on the PATH;" \
		"install one, or name it: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@"$(PYTHON)" -c '$(SUPPORTED)' || { echo "ganserve needs Python 3.11, 3.12 or 3.13 with its venv module;" \
		"$(PYTHON) is $$("$(PYTHON)" --version 2>&1)" >&2; exit 1; }
	"$(PYTHON)" -m venv $(VENV)

# The development lock is the serving lock and more, so whoever has it has both.
$(VENV)/.installed: requirements.lock pyproject.toml | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet --require-hashes --requirement requirements.lock
	$(VENV)/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.installed-dev: requirements-dev.lock pyproject.toml | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet --require-hashes --requirement requirements-dev.lock
	$(VENV)/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $(VENV)/.installed $@

# Resolves only; downloads nothing but metadata. Needs uv on the PATH.
lock:
	uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-header --upgrade --output-file requirements.lock
	uv pip compile pyproject.toml --universal --python-version 3.11 --extra dev --generate-hashes --no-header \
		--constraint requirements.lock --output-file requirements-dev.lock

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache build *.egg-info
