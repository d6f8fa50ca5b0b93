# make demo   photographs to tokens and back, a small prior, new pictures, and a report to look at
# make test   every test
# make lint   style and type checks
# Each sets up what it needs: a virtual environment in .venv with the versions of constraints.txt.

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
BIN := .venv/bin
TESTS ?= tests
WORKERS ?= 2

.PHONY: demo test lint clean

demo: .venv/ready
	@echo "== demo, some minutes: ten photographs, tokens, pictures, a small prior, new pictures and a report"
	$(BIN)/vqgan demo --output demo-output

test: .venv/ready
	@echo "== tests (many minutes; tests/installed makes environments of its own with pip, 1.5 GB below the temporary folder)"
	$(BIN)/python -m pytest $(TESTS) -n $(WORKERS) --dist loadfile

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/ready: setup.py constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; install it or run: make PYTHON=/path/to/python3"; exit 2; }
	@echo "== setting up .venv with $(PYTHON): all extras and the tools for tests, 1.7 GB; takes minutes the first time"
	$(PYTHON) -m venv .venv || { echo "cannot make a virtual environment; on Debian: apt install python3-venv"; exit 2; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all,dev]'
	@touch $@

clean:
	rm -rf .venv demo-output build dist *.egg-info
