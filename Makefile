# Two commands matter: make serve and make test. make help lists the rest.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
HOST ?= 127.0.0.1
PORT ?= 8000
MODEL ?= models/demo
SHARDS ?= 4
MINUTES ?= 20
SOAK_MINUTES ?= 20
# local: a Ray of its own on this machine; inline: one process without Ray.
MODE ?= local
DEMO_IF_ASKED := $(if $(filter models/demo,$(MODEL)),models/demo/config.json)

# A stamp lies inside the environment, so that deleting .venv deletes what it says.
DEPENDENCIES := $(VENV)/.dependencies
PACKAGE := $(VENV)/.package
PIP_LOG := $(VENV)/pip-errors.log
C_SOURCES := $(shell find experts trinity_serve -name '*.c' -o -name '*.h' -o -path '*/kernels/cpu/build.py')

.PHONY: help setup serve test test-all browser check gpu-check format observe bench chaos soak lm-eval guidellm fuzz audit lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(PACKAGE) ## environment in .venv with pinned dependencies, the package and its C kernels

$(DEPENDENCIES): requirements.lock
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 13) \
		else f"Python {v[0]}.{v[1]} is not supported; name another: make PYTHON=python3.11 $(MAKECMDGOALS)")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing $$(grep -c == $<) pinned packages into $(VENV) (once; some minutes, 2 GB)"
	@$(BIN)/python -m pip install --disable-pip-version-check --no-input --requirement $< 2>$(PIP_LOG) \
		| awk -v all="$$(grep -c == $<)" '/^(Collecting|Processing)/ { sub(".*/", "", $$2); printf "\r\033[K  %d/%d %s", ++n, all, $$2; fflush() } \
			/^Installing/ { printf "\r\033[K  unpacking"; fflush() } END { print "" }' \
		|| { cat $(PIP_LOG) >&2; exit 1; }
	@touch $@

$(PACKAGE): $(DEPENDENCIES) pyproject.toml $(wildcard setup.py) $(C_SOURCES)
	@echo "Building the C kernels and installing the package"
	@$(BIN)/python -m pip install --disable-pip-version-check --no-input --quiet \
		--no-build-isolation --no-deps --editable . 2>$(PIP_LOG) || { cat $(PIP_LOG) >&2; exit 1; }
	@touch $@

models/demo/config.json: | $(PACKAGE)
	@$(BIN)/trinity checkpoint write demo models/demo

serve: $(PACKAGE) | $(DEMO_IF_ASKED) ## serve the demo checkpoint: MODEL= SHARDS= MODE= HOST= PORT=
	@exec $(BIN)/trinity serve --model $(MODEL) --mode $(MODE) --shards $(SHARDS) --host $(HOST) --port $(PORT)

test: $(PACKAGE) ## the tests, without those marked slow
	$(BIN)/pytest -m "not slow and not bench"

test-all: $(PACKAGE) ## every test, the slow ones too
	$(BIN)/pytest -m "not bench"

browser: $(PACKAGE) ## the page's tests in this machine's Chromium, which they skip without
	@command -v chromium chromium-browser google-chrome >/dev/null \
		|| { echo "No Chromium here. Debian: apt-get install --no-install-recommends chromium fonts-dejavu-core"; exit 1; }
	$(BIN)/pytest tests/e2e/browser

check: $(PACKAGE) ## ruff, mypy --strict and the floors
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

gpu-check: $(PACKAGE) ## the Triton kernels' numbers, registers, spills: on a GPU, else interpreted and compiled
	$(BIN)/python -m tests.gpu.check

format: $(PACKAGE) ## let ruff format and fix what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

observe: $(PACKAGE) ## Prometheus and Grafana over a running server, when installed: HOST= PORT=
	@exec $(BIN)/trinity observe --url http://$(HOST):$(PORT)

bench: $(PACKAGE) ## the measurements behind each number in the README
	$(BIN)/pytest -m bench -s
	$(BIN)/python -m tests.bench.bench_serving

chaos: $(PACKAGE) | models/demo/config.json ## kill real processes, see that outputs stay: MINUTES=
	$(BIN)/python -m tests.chaos.run --minutes $(MINUTES) --out docs/chaos.md

soak: $(PACKAGE) | models/demo/config.json ## twenty minutes of load and faults: nothing may grow
	$(BIN)/python -m tests.chaos.run --minutes $(SOAK_MINUTES) --flat

lm-eval: $(PACKAGE) ## lm-eval, in an environment of its own, against the server and transformers
	@test -x $(VENV)/tools/lm-eval/bin/lm_eval || { $(PYTHON) -m venv $(VENV)/tools/lm-eval && \
		$(VENV)/tools/lm-eval/bin/python -m pip install --disable-pip-version-check --quiet \
			--requirement tests/outside/lm-eval.txt; }
	$(BIN)/pytest tests/outside/test_lm_eval.py

guidellm: $(PACKAGE) ## guidellm, in an environment of its own, loads the server (6 GB)
	@test -x $(VENV)/tools/guidellm/bin/guidellm || { $(PYTHON) -m venv $(VENV)/tools/guidellm && \
		$(VENV)/tools/guidellm/bin/python -m pip install --disable-pip-version-check --quiet \
			--requirement tests/outside/guidellm.txt; }
	$(BIN)/pytest tests/outside/test_guidellm.py

fuzz: $(PACKAGE) ## schemathesis, in an environment of its own, against the served OpenAPI document
	@test -x $(VENV)/tools/schemathesis/bin/schemathesis || { $(PYTHON) -m venv $(VENV)/tools/schemathesis && \
		$(VENV)/tools/schemathesis/bin/python -m pip install --disable-pip-version-check --quiet \
			--requirement tests/outside/schemathesis.txt; }
	$(BIN)/pytest tests/outside/test_schemathesis.py

audit: ## look every pin up among known weaknesses (needs PyPI's advisories)
	@test -x $(VENV)/tools/pip-audit/bin/pip-audit || { $(PYTHON) -m venv $(VENV)/tools/pip-audit && \
		$(VENV)/tools/pip-audit/bin/python -m pip install --disable-pip-version-check --quiet \
			--requirement tests/outside/pip-audit.txt; }
	$(VENV)/tools/pip-audit/bin/pip-audit --strict --no-deps --disable-pip --requirement requirements.lock

lock: $(DEPENDENCIES) ## write requirements.lock from what .venv has
	@sed -n '/^#/p' requirements.lock > requirements.lock.new
	@$(BIN)/python -m pip freeze --all --exclude-editable --exclude pip | sed 's/+cpu$$//' >> requirements.lock.new
	@mv requirements.lock.new requirements.lock

clean: ## remove the environment, caches, built kernels and demo checkpoint
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache models/demo
	find cluster experts router trinity_serve tests -name __pycache__ -prune -exec rm -rf {} +
	find cluster experts router trinity_serve -name '*.so' -delete
