# make demo   photographs to tokens and back, a small prior, new digits, and a report to look at
# make test   every test
# make lint   style and type checks
# make docs   the documentation as a site, in site/
# make benchmark   every measurement anew, and their table; hours
# Each sets up what it needs: a virtual environment in .venv with the versions of constraints.txt.

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
BIN := .venv/bin
PIP = $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
TESTS ?= tests
WORKERS ?= 2

.PHONY: demo test lint docs benchmark clean

demo: .venv/product
	@echo "== demo, five to ten minutes on two cores: ten photographs become tokens and images again,"
	@echo "== then a small prior learns handwritten digits and draws new ones"
	@$(BIN)/vqgan demo --output demo-output

test: .venv/ready
	@echo "== tests (many minutes; tests/installed makes environments of its own with pip, 1.5 GB below the temporary folder)"
	$(BIN)/python -m pytest $(TESTS) -n $(WORKERS) --dist loadfile

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/ready
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "== site/index.html; its search needs a server: $(BIN)/python -m http.server -d site"

benchmark: .venv/ready
	$(BIN)/python benchmarks/run_all.py

.venv/product: setup.py constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; install it or run: make PYTHON=/path/to/python3"; exit 2; }
	@echo "== setting up .venv with $(PYTHON): JAX, Beam, PyArrow and what they need, 1.3 GB; takes minutes the first time"
	@$(PYTHON) -m venv .venv || { echo "cannot make a virtual environment; on Debian: apt install python3-venv"; exit 2; }
	@$(PIP) -e '.[all]'
	@touch $@

.venv/ready: .venv/product
	@echo "== adding the tools for tests, checks and documentation, 0.8 GB; takes minutes the first time"
	@$(PIP) -e '.[all,dev]'
	@touch $@

clean:
	rm -rf .venv demo-output site build dist *.egg-info
