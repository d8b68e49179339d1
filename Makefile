# The only list of commands. Each needs Python >= 3.11 with its venv module, and a C library of this decade; nothing else.
# `.venv` is made from requirements.lock on demand. Its stamp is written last and taken away first, so a run that was
# killed in the middle leaves no stamp, and the next one starts the environment over instead of trusting a half of it.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo up test unit integration e2e soak bench check

# An empty HOME would put pip's cache, and the tests' files, below the working directory.
export HOME := $(or $(HOME),$(CURDIR)/.venv/home)

ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13 python3.14; do \
                      "$$p" -c '$(ENOUGH)' 2>/dev/null && echo "$$p" && break; done)
BIN := .venv/bin
STAMP := .venv/.complete
PIP := $(BIN)/python -m pip --disable-pip-version-check
TIERS := tests/unit tests/integration tests/e2e
PYTEST = $(BIN)/python -m pytest $(if $(K),-k "$(K)")
# On the test cluster, which is up for as long as the command runs; where none can run, e2e tests say why they are skipped.
ON_CLUSTER = $(BIN)/python -m tests.cluster session
# Most of them wait for pods, so two clusters take little more than half the time of one.
ON_TWO = $(BIN)/python -m tests.cluster pair

help: ## this list
	@sed -nE 's/^([a-z0-9]+):[^#]*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20
	@echo "  K=EXPR takes a part of the tests, ONLY=NAME one benchmark, FILE=PATH another manifest for up, PLAYS=NAMES a part of the demo."

demo: $(STAMP) ## the main job, from nothing: two shards, a real text stored, read back, searched, a shard lost and found
	@$(BIN)/python -m examples.demo $(PLAYS)

up: $(STAMP) ## local mode in the foreground with examples/quickstart.yaml; Ctrl-C stops it
	@$(BIN)/engram up -f $(or $(FILE),examples/quickstart.yaml)

test: check ## check, then every tier, on a Kubernetes of their own (root; without, its tests are skipped)
	@status=0; $(PYTEST) -n logical --dist loadfile tests/unit tests/integration || status=1; \
	 $(ON_TWO) $(PYTEST) tests/e2e || status=1; exit $$status

unit: $(STAMP) ## pure rooms and fakes: seconds, no sockets
	@$(PYTEST) -n logical tests/unit

integration: $(STAMP) ## a real Postgres from its wheel, the sidecar in front of it
	@$(PYTEST) tests/integration

e2e: $(STAMP) ## the commands as a user runs them, and the chart on a Kubernetes
	@$(ON_CLUSTER) $(PYTEST) tests/e2e

soak: $(STAMP) ## the long form of the tests that have one, and new examples for all properties
	@ENGRAM_SOAK=1 $(ON_CLUSTER) $(PYTEST) -rP -m "soak or hypothesis" -o faulthandler_timeout=7200 $(TIERS)

bench: $(STAMP) ## ratios against what is measured in the same run, kept in bench/results.json
	@$(BIN)/python bench/run.py $(if $(ONLY),--only "$(ONLY)")

check: $(STAMP) ## lint, format, types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

$(STAMP): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" && "$(PYTHON)" -c '$(ENOUGH)' || { \
	    echo "Engram needs Python 3.11 or newer, found $$("$(or $(PYTHON),python3)" --version 2>&1 | tail -n 1)." \
	         "Name one with: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@if [ -e $@ ] && $(PIP) --version >/dev/null 2>&1; then echo "Updating .venv"; \
	 else echo "Making .venv with $(PYTHON)"; "$(PYTHON)" -m venv --clear .venv || { \
	    echo "This Python has no working venv module (Debian: apt-get install python3-venv)." >&2; exit 1; }; fi
	@rm -f $@
	@# --no-deps: the lock is whole, so there is nothing to resolve.
	@$(PIP) install --quiet --no-deps --require-hashes --only-binary :all: -r requirements.lock
	@$(PIP) install --quiet --no-deps --no-build-isolation -e .
	@touch $@
