# Every target works in a fresh clone, with nothing but python3 (3.11 or newer) and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q

.DEFAULT_GOAL := help
.NOTPARALLEL:  # installations share one environment
.PHONY: help demo test check lint types layers bench protos clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.installed  ## Kill a conversation in the middle and go on with it
	@$(BIN)/threadline demo

test: $(VENV)/.installed-test  ## Run the whole test suite
	$(BIN)/python -m pytest

check: lint types layers  ## Check style, types, layers and run the tests
	$(BIN)/python -m pytest

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

layers: $(VENV)/.installed-dev
	$(BIN)/lint-imports

bench: $(VENV)/.installed-bench  ## Measure threadline and its peers in one run
	$(BIN)/python -m benchmarks $(ARGS)

protos: $(VENV)/.installed-dev  ## Compile the messages of gRPC
	cd src/threadline/server/protos && $(abspath $(BIN))/python -m grpc_tools.protoc -I . \
	  --include_imports --descriptor_set_out=sessions.binpb sessions.proto

clean:  ## Remove the virtual environment
	rm -rf $(VENV)

# A stamp stands for an installation that succeeded; an edited pyproject.toml outdates it.
$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "threadline needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1)." >&2; \
	  echo "Name another one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) has no venv module; on Debian and Ubuntu: apt install python3-venv" >&2; \
	  exit 1; }
	@echo "Creating $(VENV)"
	@$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/.installed: pyproject.toml $(VENV)/.created
	@echo "Installing threadline into $(VENV)"
	@$(PIP) install -e .
	@touch $@

$(VENV)/.installed-%: pyproject.toml $(VENV)/.created
	@echo "Installing threadline[$*] into $(VENV)"
	@$(PIP) install -e '.[$*]'
	@touch $@
