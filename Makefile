# make demo   photographs to tokens and back, a small prior, new digits, and a report to look at
# make test   every test
# make test-clusters   the same runs on job services, Dask, object stores and, where Go is, Prism
# make test-flink FLINK_JOB_SERVER_JAR=…   likewise; make test-spark SPARK_JOB_SERVER_JAR=…
# make soak   a long run whose workers and launchers are killed all the while; SOAK='--images 20000' for a shorter one
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

# Of the Beam that constraints.txt names; built once, outside of the checkout.
BEAM := $(shell sed -n 's/^apache-beam==//p' constraints.txt)
PRISM ?= $(HOME)/.cache/vqgan-pipelines/prism-$(BEAM)/prism

.PHONY: demo test test-clusters test-flink test-spark soak prism lint docs benchmark clean

demo: .venv/product
	@echo "== demo, five to ten minutes on two cores: ten photographs become tokens and images again,"
	@echo "== then a small prior learns handwritten digits and draws new ones"
	@$(BIN)/vqgan demo --output demo-output

test: .venv/ready
	@echo "== tests (many minutes; tests/installed makes environments of its own with pip, 1.5 GB below the temporary folder)"
	$(BIN)/python -m pytest $(TESTS) -n $(WORKERS) --dist loadfile --ignore tests/clusters

test-clusters: .venv/ready prism
	@echo "== runs on engines in processes of their own, and against object stores; what is skipped says why"
	VQGAN_PRISM=$(PRISM) $(BIN)/python -m pytest tests/clusters -n 0 -k 'not flink and not spark'

test-flink: .venv/ready
	@test -f "$(FLINK_JOB_SERVER_JAR)" || { echo "give FLINK_JOB_SERVER_JAR=PATH, Beam's job server for Flink"; exit 2; }
	FLINK_JOB_SERVER_JAR=$(FLINK_JOB_SERVER_JAR) $(BIN)/python -m pytest tests/clusters -n 0 -k flink

test-spark: .venv/ready
	@test -f "$(SPARK_JOB_SERVER_JAR)" || { echo "give SPARK_JOB_SERVER_JAR=PATH, Beam's job server for Spark"; exit 2; }
	SPARK_JOB_SERVER_JAR=$(SPARK_JOB_SERVER_JAR) $(BIN)/python -m pytest tests/clusters -n 0 -k spark

soak: .venv/ready
	@echo "== 200,000 small images, two workers, 45 kills; minutes"
	$(BIN)/python -m tests.clusters.soak $(SOAK)

prism:
	@test -x $(PRISM) || ! command -v go > /dev/null || { \
	  echo "== building Prism $(BEAM) with Go, minutes, once"; \
	  GOBIN=$(dir $(PRISM)) go install github.com/apache/beam/sdks/v2/go/cmd/prism@v$(BEAM); } \
	  || echo "== Prism cannot be built here; its tests are skipped"

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
