# Everything that a developer or a newcomer runs. `make help` lists it.
#
# Needs Linux, Python >= 3.11, make and git; no compiler. Everything is installed into .venv, exactly as
# constraints.txt says. Outside this folder only a cache is written: ${XDG_CACHE_HOME:-~/.cache}/clawbox. As root on
# Debian or Ubuntu, `make test` installs packages that it needs and that are missing (test-machine says which).

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules --no-print-directory
.SUFFIXES:

VENV := .venv
BIN := $(VENV)/bin
# Wheels only: nothing is ever compiled here. setuptools warns about every editable installation.
PIP := PIP_ONLY_BINARY=:all: PYTHONWARNINGS=ignore $(BIN)/python -m pip --disable-pip-version-check --no-input --no-cache-dir --quiet
PROJECT := clients/python/pyproject.toml pyproject.toml

# The tools that set-up runs keep their own caches; here they stay inside .venv.
export PATH := $(CURDIR)/$(BIN):$(PATH)
export BUF_CACHE_DIR := $(CURDIR)/$(VENV)/cache/buf
export ZIG_GLOBAL_CACHE_DIR := $(CURDIR)/$(VENV)/cache/zig
export ZIG_LOCAL_CACHE_DIR := $(CURDIR)/$(VENV)/cache/zig
export npm_config_cache := $(CURDIR)/$(VENV)/cache/npm
export npm_config_update_notifier := false

# gVisor's runtime for containers, the version that was tried (docs/images.md).
RUNSC := gvisor.dev/gvisor/runsc@v0.0.0-20260905035102-160fafc42237

# A stamp of its own for each cache folder, and none when that folder has gone: another HOME warms its own.
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/clawbox
WARM := $(VENV)/stamps/warm-$(shell printf %s '$(CACHE)' | cksum | cut -d ' ' -f 1)
ifeq ($(shell ls -A '$(CACHE)' 2>/dev/null),)
.PHONY: $(WARM)
endif

INTERPRETER_SOURCES := $(shell find clawbox/wasm/wit clawbox/wasm/build examples/tools/python examples/tools/javascript \
  -type f -not -path '*/__pycache__/*' -not -path '*/node_modules/*' -not -name '*.wasm' 2>/dev/null)

.PHONY: help
help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

##### Set-up

.PHONY: setup
setup: $(WARM)  ## Install everything into .venv, build the interpreters, compile them

$(BIN)/python3:
	@for python in $${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do \
	  if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found=$$python; break; fi; \
	done; \
	if [ -z "$${found:-}" ]; then echo "clawbox needs Python 3.11 or newer; set PYTHON to where it is." >&2; exit 1; fi; \
	echo "• creating $(VENV) with $$("$$found" --version)"; \
	if ! "$$found" -m venv $(VENV); then \
	  rm -rf $(VENV); \
	  echo "This Python cannot make virtual environments (on Debian and Ubuntu: apt install python3-venv)." >&2; exit 1; \
	fi

$(VENV)/stamps/installed: constraints.txt $(PROJECT) | $(BIN)/python3
	@echo "• installing clawbox and what it needs (a few hundred megabytes the first time)"
	@$(PIP) install -c constraints.txt pip setuptools
	@$(PIP) install -c constraints.txt --no-build-isolation -e clients/python -e '.[build]'
	@mkdir -p $(@D) && touch $@

$(VENV)/stamps/dev: $(VENV)/stamps/installed
	@echo "• installing what tests and checks need"
	@$(PIP) install -c constraints.txt --group dev
	@touch $@

$(VENV)/stamps/interpreters: $(VENV)/stamps/installed $(INTERPRETER_SOURCES)
	@echo "• building the Python and JavaScript interpreters from source"
	@$(BIN)/python -m clawbox.wasm.build.builtin
	@touch $@

# What is in the cache depends on the engine's settings and on how artifacts are kept.
$(WARM): $(VENV)/stamps/interpreters $(wildcard clawbox/wasm/engine.py clawbox/wasm/compile*.py clawbox/wasm/cache.py)
	@echo "• compiling the interpreters into $(CACHE)"
	@$(BIN)/python -m clawbox.wasm.compiler --builtin
	@touch $@

# What tests need of a machine beside .venv, each only where it is missing. Nothing fails here: a test names what
# it misses, and fails in CI. Nothing that is installed is removed or replaced.
.PHONY: test-machine
test-machine: $(VENV)/stamps/dev
	@missing=; \
	PATH="$$PATH:/usr/sbin"; \
	command -v dockerd >/dev/null || missing+=' docker.io'; \
	[ -e /bin/busybox ] && ! ldd /bin/busybox &>/dev/null || missing+=' busybox-static'; \
	command -v debootstrap >/dev/null || missing+=' debootstrap'; \
	if [ -z "$$missing" ]; then :; \
	elif [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then echo "• tests of containers need:$$missing"; \
	else \
	  echo "• installing for the tests of containers:$$missing"; \
	  install() { DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-remove --no-install-recommends "$$1"; }; \
	  for package in $$missing; do \
	    { install $$package || { apt-get update -qq && install $$package; }; } &>$(VENV)/apt.log \
	      || { echo "  $$package cannot be installed:"; tail -n 3 $(VENV)/apt.log; } >&2; \
	  done; \
	fi
	@$(MAKE) --silent --keep-going --jobs=2 agent-base-archive $$(command -v go >/dev/null && echo runsc) || true

.PHONY: agent-base-archive
agent-base-archive: $(VENV)/stamps/installed
	@$(BIN)/python -m tools.agent_base --archive --keep

$(BIN)/runsc: | $(VENV)/stamps/installed
	@command -v go >/dev/null || { echo "runsc is built with Go, and there is none here" >&2; exit 1; }
	@echo "• building gVisor's runsc (a minute or two, once)"
	@box=$$(mktemp -d -p $(VENV)); trap 'rm -rf "$$box"' EXIT; \
	CGO_ENABLED=0 GOFLAGS=-modcacherw GOPATH="$(CURDIR)/$$box/go" GOCACHE="$(CURDIR)/$$box/cache" GOBIN="$(CURDIR)/$$box" \
	  go install $(RUNSC) 2>"$$box/log" || { tail -n 5 "$$box/log" >&2; exit 1; }; \
	mv "$$box/runsc" $@

##### Use

.PHONY: demo
demo: setup  ## Show what clawbox does, with a server of its own on this machine
	@$(BIN)/python -m examples.demo

.PHONY: serve
serve: setup  ## Run a server in the foreground; the first time, make its settings and token in ~/.clawbox
	@if [ -z "$${CLAWBOX_CONFIG:-}" ] && [ ! -e ~/.clawbox ]; then \
	  $(BIN)/clawbox init >/dev/null; echo "• made ~/.clawbox, with settings and a token that may do everything"; \
	fi
	@echo "• serving; in another shell: $(BIN)/clawbox py 'print(6 * 7)'"
	@$(BIN)/clawbox serve

.PHONY: agent-base
agent-base: $(VENV)/stamps/installed  ## Build the image clawbox/agent-base anew, for the Docker engine here
	@echo "• building clawbox/agent-base (a minute)"
	@$(BIN)/python -m tools.agent_base

.PHONY: runsc
runsc: $(BIN)/runsc  ## Build gVisor's runtime into .venv/bin, with Go

.PHONY: bench
bench: setup  ## Measure, and print medians beside their targets
	@$(BIN)/python -m benchmarks

##### Development

.PHONY: test
test: setup $(VENV)/stamps/dev test-machine  ## Run all tests (ARGS="-k name" for some)
	@box=$$(mktemp -d); trap 'chmod -R u+rwX "$$box"; rm -rf "$$box"' EXIT; \
	$(BIN)/python -m pytest --basetemp="$$box/t" $(ARGS)

.PHONY: check
check: $(VENV)/stamps/dev  ## Lint, types, layers, contract, drift of generated files (ONLY="ruff mypy" for some)
	@$(BIN)/python -m tools.check $(ONLY)

.PHONY: leak-report
leak-report: $(VENV)/stamps/installed  ## Count what the leak scanner finds, misses, and finds wrongly
	@$(BIN)/python -m tools.leak_report

.PHONY: generate
generate: $(VENV)/stamps/dev  ## Write the generated files anew: stubs from protos/, docs from the code
	@$(BIN)/buf generate
	@$(BIN)/python -m tools.assemble_gate
	@$(BIN)/python -m tools.generate_error_docs
	@$(BIN)/python -m tools.generate_refusal_docs
	@$(BIN)/python -m tools.generate_cli_docs
	@$(BIN)/python -m clawbox.config.reference

.PHONY: release-image
release-image: $(VENV)/stamps/dev  ## Record the contract as released: what buf breaking compares with
	@$(BIN)/buf build protos --exclude-source-info -o protos/release.binpb

.PHONY: constraints
constraints: $(VENV)/stamps/dev  ## Write constraints.txt anew from what is installed in .venv
	@$(BIN)/python -m tools.update_constraints

.PHONY: clean
clean:  ## Remove what was installed, built and cached in this folder
	@rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .cache *.egg-info clients/python/*.egg-info
	@find clawbox examples -name '*.wasm' -delete
