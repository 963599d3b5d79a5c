# `make` lists the targets. Every target installs what it needs into a virtual environment of its own.
.DEFAULT_GOAL := help
.PHONY: help demo test fault fault-real soak check format proto tools \
	benchmark clean

PYTHON ?= python3
VENV ?= .venv
BIN := $(abspath $(VENV))/bin

# demo: SPEED=max streams as fast as it goes, ROOMS=20 lets so many speak at once, FILE=path is yours.
SPEED ?= 1
ROOMS ?= 1
FILE ?=

# fault: so many schedules, from this one on.
SEEDS ?= 2000
FIRST_SEED ?= 0

# fault-real, soak: what goes wrong and what is sent follow from the seed.
SEED ?= 1
PACKAGES ?= 100000
REPLICAS ?=
MINUTES ?= 30
CURVES ?= soak.csv

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{split($$1, n, ":"); printf "  make %-10s %s\n", n[1], $$2}'

demo: $(VENV)/.transcribe  ## transcribe recorded speech live (SPEED=max, ROOMS=20, FILE=path)
	$(BIN)/python -m examples.transcribe.demo --speed $(SPEED) --rooms $(ROOMS) $(if $(FILE),'$(FILE)')

test: $(VENV)/.test $(VENV)/.tools  ## run all tests, with real servers and real processes
	$(BIN)/python -m pytest -n 2 --dist worksteal

tools:  ## install nginx, HAProxy, Prometheus for their tests (root, apt-get); elsewhere these are skipped
	sh tests/integration/install_tools.sh

fault: $(VENV)/.test  ## simulate faults from seeds (SEEDS=2000 FIRST_SEED=0; one seed: SEEDS=1)
	$(BIN)/python -m tests.fault --seeds $(SEEDS) --first $(FIRST_SEED)

fault-real: $(VENV)/.test  ## faults on real servers and processes (SEED=1 PACKAGES=100000 REPLICAS=1|3, else both)
	$(BIN)/python -m tests.fault.real --seed $(SEED) --packages $(PACKAGES) \
		$(if $(REPLICAS),--replicas $(REPLICAS))

soak: $(VENV)/.test  ## half of the highest rate, with faults; curves of memory and fds (MINUTES=30 SEED=1)
	$(BIN)/python -m tests.fault.real --seed $(SEED) --minutes $(MINUTES) --curves $(CURVES)

check: $(VENV)/.dev  ## formatting, lint, types, the proto files
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	cd proto && $(BIN)/buf lint

format: $(VENV)/.dev  ## format, and mend what ruff can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

proto: $(VENV)/.dev  ## generate broker_pipeline/_proto from proto/
	cd proto && $(BIN)/buf lint
	rm -rf build/proto && mkdir -p build/proto
	$(BIN)/python -m grpc_tools.protoc -I proto --python_out=build/proto --pyi_out=build/proto \
		$$(cd proto && find broker_pipeline -name '*.proto')
	$(BIN)/python -m grpc_tools.protoc -I proto --grpc_python_out=build/proto \
		broker_pipeline/v1/module_service.proto
	@# protoc writes imports from the proto root; the package keeps its generated code in _proto.
	sed -i 's/^from broker_pipeline\.v1 import/from broker_pipeline._proto.v1 import/' \
		build/proto/broker_pipeline/v1/*.py build/proto/broker_pipeline/v1/*.pyi
	rm -rf broker_pipeline/_proto/v1 && cp -r build/proto/broker_pipeline/v1 broker_pipeline/_proto/v1
	touch broker_pipeline/_proto/v1/__init__.py

benchmark: $(VENV)/.test  ## ours beside the same topology hand-written on nats-py
	$(BIN)/python -m benchmarks.ordered_controller

clean:  ## remove the virtual environment and what was built
	rm -rf $(VENV) build *.egg-info

# Tried once: without it the tests of these programs are skipped.
$(VENV)/.tools: tests/integration/install_tools.sh | $(VENV)/.test
	sh tests/integration/install_tools.sh
	touch $@

# One stamp a set of extras: installed again when pyproject.toml changes.
$(VENV)/.%: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[$*,embedded]'
	touch $@
