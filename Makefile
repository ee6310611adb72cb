# Everything from a fresh clone: `make run` (a first table), `make small` (one of pretrained models), `make test`, `make lint`.
# Each makes the environment first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PROCESSES ?= 2
DATA ?= data
GEMMA ?= no
PYTEST := env PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest  # tests start Python often: bytecode is cached

.DEFAULT_GOAL := help
.PHONY: help install run small test unit lint style layout types imports format hooks clean distclean

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

install: $(INSTALLED)  ## make the environment in .venv (3 GB; several GB more with torch's CUDA build, see README.md)

run: $(INSTALLED)  ## the paper's methods on three small models and two datasets, a cell per CPU core: tables, MLflow runs, a summary
	$(BIN)/python -m harness run suites/main_table.yaml --scale mini --launch cores

# DATA=FOLDER is a folder of records that is used as it is. Gemma comes under terms of use, https://ai.google.dev/gemma/terms, which
# GEMMA=yes accepts.
small: $(INSTALLED)  ## all methods on SmolLM2-135M, and Gemma-3-270M with GEMMA=yes, and real records
	@[ "$(DATA)" != data ] || $(BIN)/python -m harness data fetch --to data
	@[ "$(GEMMA)" != yes ] || $(BIN)/python -m harness models fetch gemma-3-270m
	$(BIN)/python -m harness run suites/main_table.yaml --scale small --launch cores --data "$(DATA)" $(if $(filter yes,$(GEMMA)),,--only model=smollm2-135m)

# Two runs of pytest, each with its own summary: everything else in parallel, then the tests that share a SLURM cluster.
# PYTEST_ARGS are options for both. Exit code 2 of pytest is an interrupt, 5 means that no test was selected.
test: $(INSTALLED)  ## all tests that this machine can run; the others say why they were skipped
	@trap : INT; $(PYTEST) -n $(PROCESSES) --dist worksteal -m "not slurm" $(PYTEST_ARGS); parallel=$$?; \
	[ $$parallel -ne 2 ] || exit 2; \
	$(PYTEST) -m slurm tests/slurm/cluster $(PYTEST_ARGS); cluster=$$?; \
	case $$parallel/$$cluster in 0/0 | 0/5 | 5/0) ;; *) exit 1 ;; esac

unit: $(INSTALLED)  ## the tests that take seconds
	$(PYTEST) -n $(PROCESSES) --dist worksteal -m "not slow and not slurm and not easyedit and not latex" $(PYTEST_ARGS)

lint: style layout types imports  ## style, format, types and import contracts; changes nothing
style: $(INSTALLED)
	$(BIN)/ruff check .
layout: $(INSTALLED)
	$(BIN)/ruff format --check .
types: $(INSTALLED)
	$(BIN)/mypy
imports: $(INSTALLED)
	$(BIN)/lint-imports --no-logo --no-cache

format: $(INSTALLED)  ## fix what ruff can fix of style and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

hooks: $(INSTALLED)  ## run the checks before each commit
	$(BIN)/pre-commit install

clean:  ## remove caches; results and environment stay
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean  ## remove the environment too
	rm -rf $(VENV)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Python 3.11 or newer is needed, $$($(PYTHON) --version) was found: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV); the first time takes some minutes"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
