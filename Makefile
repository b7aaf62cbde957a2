# Sluice. `make` lists the commands. Needs Python 3.11+ and make; everything else is installed into .venv.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
BENCH_STAMP := $(VENV)/.bench
ARGS   ?=
SEEDS  ?= 5

.DEFAULT_GOAL := help
.PHONY: help up demo test chaos bench docs check format lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

up: $(STAMP) ## run the whole pipeline here, until Ctrl-C (data stays in .sluice/)
	@$(BIN)/python -m deploy.local up $(ARGS)

demo: $(STAMP) ## send a shop's search sessions through the pipeline and show what they say
	@$(BIN)/python -m deploy.local demo $(ARGS)

test: $(STAMP) ## every test, against real Kafka and the real ClickHouse engine; ARGS=… is for pytest
	$(BIN)/python -m $(if $(ARGS),pytest $(ARGS),tests)

chaos: $(STAMP) ## break everything at random, SEEDS times, and count the rows afterwards
	CHAOS_SEEDS=$(SEEDS) CHAOS_EVENTS=200000 CHAOS_WRITE_TABLE=1 $(BIN)/python -m pytest tests/chaos -p tests.chaos.summary --tb=short $(ARGS)

bench: $(BENCH_STAMP) ## against Go, FastAPI and the engine's own limit, for an hour; SCENARIO=name runs one
	@$(BIN)/python -m tests.bench $(SCENARIO) $(ARGS)

docs: $(STAMP) ## write README's table of settings anew
	@$(BIN)/python -m deploy.settings_table

check: $(STAMP) ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP) ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

UV_COMPILE = $(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --quiet \
    --no-emit-index-url --no-emit-find-links --no-emit-package sluice --custom-compile-command "make lock"
lock: $(STAMP) ## pin all dependencies anew, with hashes
	$(BIN)/python -m pip install --quiet uv
	$(UV_COMPILE) -o deploy/locks/runtime.txt
	$(UV_COMPILE) -o deploy/locks/dev.txt --extra local --extra dev -c deploy/locks/runtime.txt
	$(UV_COMPILE) -o deploy/locks/bench.txt --extra local --extra bench -c deploy/locks/dev.txt
	$(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes --quiet --no-emit-index-url \
	    --no-emit-find-links --custom-compile-command "make lock" -o deploy/locks/build.txt \
	    -c deploy/locks/dev.txt deploy/locks/build.in

$(BENCH_STAMP): $(STAMP) deploy/locks/bench.txt
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet --progress-bar on --require-hashes -r deploy/locks/bench.txt
	@touch $@

clean: ## remove the environment and the local stack's data
	rm -rf $(VENV) .sluice

# Hatchling comes from the lock too, so that the editable install needs nothing from outside it.
$(STAMP): deploy/locks/dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	    || { echo "Sluice needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Try: make PYTHON=python3.12 …"; exit 1; }
	@echo "Installing pinned dependencies into $(VENV) (once; about a minute) …"
	@$(PYTHON) -m venv $(VENV) || { echo "python3 cannot make a venv: on Debian and Ubuntu, apt-get install python3-venv"; exit 1; }
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet --progress-bar on --require-hashes -r deploy/locks/dev.txt
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation -e .
	@touch $(STAMP)
