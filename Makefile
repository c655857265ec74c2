# Every target makes its own environment first: Python 3.11 or newer and make are all it takes.
#   make demo    an agent is killed in the middle, goes on, and shows its bill
#   make test    the tests on SQLite and the embedded broker, and on the servers that are reachable
#   make test-all everything: the tests that are slow or kill processes as well, then those beside other software
#   make test-neighbours
#                the tests beside other software (Sentry, OpenTelemetry, gunicorn, PgBouncer, another team …), in an
#                environment of their own
#   make test-coverage
#                what `make test` covers, branches and child processes included
#   make lint    what CI checks before it runs the tests
#   make bench   the benchmarks beside their neighbours (needs PostgreSQL)
# Variables: PYTHON=python3.12 (the interpreter for a new environment), VENV=.venv, ARGS="more arguments",
# JOBS=1 (how many processes run the tests; most of their time they wait).

VENV ?= .venv
ARGS ?=
JOBS ?= 3
RUN := $(VENV)/bin/python
FAST := "not chaos and not browser and not slow and not neighbour"
export PYTHON
# What pytest has rewritten and Python has compiled is kept, whatever the environment says: else each
# process does it again, which is most of what collecting the tests costs.
unexport PYTHONDONTWRITEBYTECODE

.NOTPARALLEL:
.PHONY: demo test test-all test-coverage test-neighbours bench lint lint-rules lint-format lint-types lint-imports
.DEFAULT_GOAL := test

demo: $(VENV)/.ready-examples
	@$(RUN) -m examples.demo $(ARGS)

test: $(VENV)/.ready-test
	@$(RUN) -m pytest -n $(JOBS) --dist loadfile -m $(FAST) $(ARGS)

test-all: $(VENV)/.ready-test
	@$(RUN) -m pytest -n $(JOBS) --dist loadfile -m "not neighbour" $(ARGS)
	@$(MAKE) --no-print-directory test-neighbours

test-coverage: $(VENV)/.ready-test
	@scripts/measure-coverage $(RUN) -n $(JOBS) --dist loadfile -m $(FAST) $(ARGS)

test-neighbours: $(VENV)-neighbours/.ready-neighbours
	@$(VENV)-neighbours/bin/python -m pytest -n $(JOBS) --dist loadfile -m neighbour -p no:ddtrace $(ARGS)

lint: lint-rules lint-format lint-types lint-imports  # all of them in spite of errors: make --keep-going lint

lint-rules: $(VENV)/.ready-dev
	$(RUN) -m ruff check --quiet .

lint-format: $(VENV)/.ready-dev
	$(RUN) -m ruff format --quiet --check .

lint-types: $(VENV)/.ready-dev
	$(RUN) -m mypy
	$(RUN) -m mypy tests/typing
	$(VENV)/bin/basedpyright --pythonpath $(RUN)

lint-imports: $(VENV)/.ready-dev
	$(VENV)/bin/lint-imports

bench: $(VENV)/.ready-benchmarks
	@$(RUN) -m benchmarks $(ARGS)

# One stamp per extra: nothing is installed again until what is declared has changed.
$(VENV)/.ready-%: pyproject.toml constraints.txt scripts/bootstrap
	@scripts/bootstrap $(VENV) $*
	@touch $@

$(VENV)-neighbours/.ready-%: pyproject.toml constraints.txt scripts/bootstrap
	@scripts/bootstrap $(VENV)-neighbours $*
	@touch $@

# make would delete the stamps as intermediate files.
.PRECIOUS: $(VENV)/.ready-% $(VENV)-neighbours/.ready-%
