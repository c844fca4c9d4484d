# What a newcomer and a developer type; `make` alone lists it. For GNU make 3.81 (macOS) and newer.

PYTHON ?= python3
BIN := .venv/bin

ifeq ($(LIGHT),1)
DEMO := light
DEMO_EXTRAS := embedded
else
DEMO := demo
DEMO_EXTRAS := embedded train
endif

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo install test lint types contract pytest format bench soak leaderboard replay clean

help: ## list the targets
	@echo "make demo         the service on real data at http://127.0.0.1:8000 (LIGHT=1: without torch; ARGS=\"--port 8001\")"
	@awk -F ':.*## ' '/^[a-z]+:.*## / && $$1 != "demo" { printf "make %-12s %s\n", $$1, $$2 }' Makefile

demo: .venv/.installed-$(DEMO) ## the service on real data at http://127.0.0.1:8000
	@$(BIN)/segue demo $(ARGS)

install: .venv/.installed-dev ## the environment for development, in .venv

test: lint types contract pytest ## everything that CI checks (ARGS="-k name" goes to pytest)

lint: install ## ruff: rules and format
	@echo "── lint"
	@$(BIN)/ruff check .
	@echo "── format"
	@$(BIN)/ruff format --check .

types: install ## mypy, strict
	@echo "── types"
	@$(BIN)/mypy

contract: install ## import-linter: who may import whom
	@echo "── import contract"
	@$(BIN)/lint-imports

pytest: install ## the tests alone
	@echo "── tests"
	@$(BIN)/python -m pytest -n 2 --dist loadgroup $(ARGS)

format: install ## put every file into the one format
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: install ## run every benchmark but the soak (minutes)
	@for file in benchmarks/[a-z]*.py; do \
		test "$$file" != benchmarks/soak.py || continue; \
		test -e "$$file" || { echo "There is no benchmark yet."; exit 0; }; \
		echo "── $$file"; $(BIN)/python -m benchmarks.$$(basename "$$file" .py) || exit 1; \
	done

soak: install ## full load for half an hour: does memory stay flat? (ARGS="--minutes 5")
	@$(BIN)/python -m benchmarks.soak $(ARGS)

leaderboard: install ## measure every recommender into docs/leaderboard.md
	@$(BIN)/segue evaluate --seeds 3 --markdown docs/leaderboard.md

replay: install ## replay the demo's log against the live service, into docs/replay.md (ARGS="--seeds 3")
	@$(BIN)/segue replay demo/movietweetings-100k --format movietweetings --markdown docs/replay.md $(ARGS)

clean: ## remove caches and build output; your data (var/) and the environment (.venv/) stay
	@rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .schemathesis .import_linter_cache
	@find . -name __pycache__ -type d -not -path './.venv/*' -not -path './var/*' -prune -exec rm -rf {} +
	@test ! -d var || echo "var/ holds your data and was kept; remove it by hand: rm -r var"

# The stamps are younger than what they were made from, so a second `make demo` installs nothing.
.venv/.installed-light .venv/.installed-demo: $(BIN)/python pyproject.toml requirements/constraints.txt
	@$(BIN)/python requirements/install.py $(DEMO_EXTRAS)
	@touch $@

.venv/.installed-dev: $(BIN)/python pyproject.toml requirements/constraints.txt
	@$(BIN)/python requirements/install.py embedded dev
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "Segue needs Python 3.11 or newer, and \`$(PYTHON)\` is: `$(PYTHON) --version 2>&1`." >&2; \
		echo "Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -m venv .venv || { \
		echo "On Debian and Ubuntu: apt-get install python3-venv, then run make again." >&2; rm -rf .venv; exit 1; }
