# make check before a commit, make test before a merge. Uses .venv where there is one, else the python on PATH.
PYTHON ?= $(if $(wildcard .venv/bin/python),.venv/bin/python,python)

.PHONY: check test fast lint types format serve

check: lint  ## lint, types and the fast tests: under two minutes on two cores
	$(MAKE) --no-print-directory --output-sync=target -j2 types fast

fast:
	$(PYTHON) -m pytest -q -m "not slow"

test:  ## every test but the nightly ones
	$(PYTHON) -m pytest -q

lint:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

types:
	$(PYTHON) -m pyright --pythonpath "$$($(PYTHON) -c 'import sys; print(sys.executable)')"

format:
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

serve:
	$(PYTHON) app.py
