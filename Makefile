# Each target makes its own environment in .venv; Python 3.11 or newer and make are all it needs. What is installed is
# locked in requirements/: every version, and the hash of every file.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
LOCKED_DEMO := requirements/run.txt requirements/build.txt requirements/demo.txt
LOCKED_DEV := $(LOCKED_DEMO) requirements/dev.txt
LOCKED_BENCH := requirements/bench.txt

# Hundreds of processes would compile the sources anew, each for itself.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-fast test-matrix test-failover test-fleet coverage soak fuzz bench instructions
.PHONY: check format docs site dashboards rule lock sbom clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

demo: $(VENV)/demo ## see it run: PostgreSQL, the game's tables, a simulated game, the exporter
	@exec $(BIN)/mfg-notify demo

test: $(VENV)/dev ## run the test suite, without what takes long: four minutes on two idle cores
	$(BIN)/python -m pytest -n 4 --dist worksteal -m "not soak and not fuzz and not thorough and not extended" $(PYTEST)

test-all: $(VENV)/dev ## run the whole test suite
	$(BIN)/python -m pytest -n 4 --dist worksteal $(PYTEST)

test-fast: $(VENV)/dev ## unit and integration tests, in about a minute and a half
	$(BIN)/python -m pytest -n 3 --dist worksteal -m "not soak and not fuzz and not slow and not thorough" tests/unit tests/integration $(PYTEST)

test-matrix: $(VENV)/dev ## what needs a database, on PostgreSQL 14 to 18 or on VERSIONS="14 16"
	$(BIN)/python -m tests.matrix $(if $(VERSIONS),--versions "$(VERSIONS)") $(PYTEST)

test-fleet: $(VENV)/dev ## twenty games, exporters, an agent and two stores, each of which dies once: a quarter of an hour
	$(BIN)/python -m pytest -m soak tests/e2e/test_fleet.py

coverage: $(VENV)/dev ## branches of the core that the unit tests take
	$(BIN)/python -m pytest -n 2 --dist worksteal --cov --cov-report=term-missing tests/unit

test-failover: $(VENV)/dev ## failovers under Patroni: MFG_NOTIFY_FAILOVER_ROUNDS (20) synchronous, as many asynchronous
	$(BIN)/python -m pytest -m soak tests/faults/test_failover.py

soak: $(VENV)/dev ## simulation for 5 minutes, failovers, then all faults in random order for MFG_NOTIFY_SOAK_MINUTES (30)
	$(BIN)/python -m pytest -m soak tests/simulation tests/faults

fuzz: $(VENV)/dev ## generated input against all that reads what others write, for MFG_NOTIFY_FUZZ_MINUTES (60)
	$(BIN)/python -m pytest -m fuzz tests/fuzz

bench: $(VENV)/bench ## measure what it costs and how fast it is: half an hour, on an idle machine
	$(BIN)/python -m benchmarks $(BENCH)

instructions: $(VENV)/dev ## count what the triggers cost the game (valgrind, PostgreSQL 15): fails if 5 % above the baseline
	$(BIN)/python -m benchmarks.count_instructions --check $(INSTRUCTIONS)

check: $(VENV)/dev ## lint, format, types, import contracts, generated files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/generate.py --check
	$(BIN)/python grafana/generate.py --check
	$(BIN)/python deploy/generate.py --check

format: $(VENV)/dev ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/dev ## write the generated parts of the documentation
	$(BIN)/python docs/generate.py

site: $(VENV)/dev ## build the documentation as a site, in site/: open site/index.html
	$(BIN)/mkdocs build --strict

dashboards: $(VENV)/dev ## write grafana/dashboards/*.json from their builders
	$(BIN)/python grafana/generate.py

rule: $(VENV)/dev ## write deploy/kubernetes/prometheusrule.yaml from prometheus/rules
	$(BIN)/python deploy/generate.py

lock: $(VENV)/dev ## write requirements/*.txt from pyproject.toml; LOCK="--upgrade" raises all versions
	$(BIN)/python requirements/lock.py $(LOCK)

sbom: $(VENV)/dev ## write dist/mfg-notify.cdx.json: what is shipped, as CycloneDX
	$(BIN)/python requirements/sbom.py

.PHONY: release
release: $(VENV)/dev ## write all files of a release to dist/; RELEASE="--dry-run" to try it
	$(BIN)/python release/make.py $(RELEASE)

clean: ## remove the environment and all caches
	rm -rf $(VENV) .postgres .coverage .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache dist site

$(VENV)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "mfg-notify needs Python 3.11 or newer; name one with: make PYTHON=python3.12 …"; exit 1; }
	@echo "making the environment in $(VENV) …"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/demo: $(VENV)/python pyproject.toml $(LOCKED_DEMO)
	@echo "installing mfg-notify and an embedded PostgreSQL …"
	@$(PIP) install $(LOCKED_DEMO:%=-r %)
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/dev: $(VENV)/python pyproject.toml $(LOCKED_DEV)
	@echo "installing mfg-notify and its development tools …"
	@$(PIP) install $(LOCKED_DEV:%=-r %)
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@ $(VENV)/demo

$(VENV)/bench: $(VENV)/dev $(LOCKED_BENCH)
	@$(PIP) install $(LOCKED_BENCH:%=-r %)
	@touch $@
