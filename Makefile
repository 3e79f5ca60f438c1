# Every target is one word; `make` alone lists them. Nothing is needed beforehand but Python 3.11
# or newer, make and git: what else is missing is installed, or named with the command to install it.

VENV := .venv
BIN := $(VENV)/bin
# Celery, Dramatiq and others beside qworker: for `make peers` and `make bench` alone.
PEERS := .venv-peers
# The runtime alone is what a first look needs, and is there in a quarter of the time.
RUNTIME := $(VENV)/.installed-runtime
DEV := $(VENV)/.installed-dev
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# Most tests wait for processes and servers rather than compute; each worker has its own servers.
WORKERS := 3
# Each worker takes the next test: the long ones (acceptance) are the first, short ones (unit) last,
# so that all workers end together.
IN_ORDER := --dist load --maxschedchunk 1
TYPED := $(wildcard worker contrib tests benchmarks examples)

.DEFAULT_GOAL := help
.PHONY: help install demo servers test chaos mutations soak check bench peers clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):[^#]*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

install: $(DEV) ## make .venv with qworker (editable) and everything that tests and checks need

demo: $(RUNTIME) ## show what qworker does, with no server
	@$(BIN)/qworker demo

servers: ## install RabbitMQ, Redis, PostgreSQL, MariaDB and Node.js where they are missing; starts none
	@scripts/ensure_servers.sh

test: $(DEV) servers ## run all but the long tests, against servers of their own on free ports
	@$(BIN)/python -m pytest --numprocesses $(WORKERS) $(IN_ORDER) --durations 12

chaos: $(DEV) servers ## run the long tests, then faults at random for five minutes
	@$(BIN)/python -m pytest -m long --numprocesses 2 $(IN_ORDER)
	@$(BIN)/python tests/chaos/campaign.py --minutes 5

mutations: $(DEV) ## break one mechanism of the product after the other: the simulation has to notice
	@$(BIN)/python tests/simulation/mutate.py

soak: $(DEV) servers ## run faults at random for four hours
	@$(BIN)/python tests/chaos/campaign.py --minutes 240 --record soak.jsonl

check: $(DEV) ## lint, format, types, imports: all four, whatever the first ones say
	@status=0; \
	for tool in "ruff check ." "ruff format --check ." "mypy $(TYPED)" lint-imports; do \
		echo "$$tool"; $(BIN)/$$tool || status=1; \
	done; \
	exit $$status

bench: $(PEERS)/.installed servers ## measure qworker beside its peers: throughput (about 15 min); docs/benchmarks.md has more
	@PYTHONPATH=benchmarks:tests $(PEERS)/bin/python -m speed throughput

peers: $(PEERS)/.installed servers ## run qworker, Celery, Dramatiq and FastStream through the same faults (about 20 min)
	@PYTHONPATH=benchmarks:tests $(PEERS)/bin/python -m peers

clean: ## remove .venv, builds and caches
	rm -rf $(VENV) $(PEERS) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@scripts/create_venv.sh $(VENV)

$(RUNTIME): pyproject.toml | $(BIN)/python
	@echo "Installing qworker into $(VENV) ..."
	@$(PIP) --editable .
	@touch $@

$(DEV): pyproject.toml | $(BIN)/python
	@echo "Installing qworker and its development tools into $(VENV) ..."
	@$(PIP) --editable '.[dev]'
	@touch $(RUNTIME) $@

$(PEERS)/bin/python:
	@scripts/create_venv.sh $(PEERS)

$(PEERS)/.installed: pyproject.toml benchmarks/peers/requirements.txt | $(PEERS)/bin/python
	@echo "Installing qworker and its peers into $(PEERS) ..."
	@$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]' \
		--requirement benchmarks/peers/requirements.txt
	@touch $@
