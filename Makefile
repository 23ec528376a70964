# `make` alone tells what there is. Every target sets up what it needs first; nothing is installed twice.
SHELL := /bin/bash
BIN := .venv/bin
# Three workers on two cores: the suite starts brokers and processes, and waits for them a fifth of its time.
JOBS ?= 3

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-torch test-peers test-runners fetch-torch fetch-peers fetch-runners core-kills bucket-kills power-cuts soak gate fuzz mutants check format bench lock wheel wheels deb systemd-units clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## .venv with the locked packages, and Mosquitto; quick when nothing has changed
	@sh scripts/setup.sh

demo: setup ## the whole loop on generated data on this machine
	@$(BIN)/catchment demo

test: setup ## the whole suite but the slow tests, in under five minutes
	@$(BIN)/pytest -q -n $(JOBS) --dist worksteal -m "not slow and not bench"

test-slow: setup ## the slow tests: at least 300 kills of the core, large images, many devices
	@CATCHMENT_LEAST_KILLS=300 $(BIN)/pytest -q -n $(JOBS) --dist worksteal -m "slow and not bench"

test-torch: fetch-torch ## the loader's tests with the real PyTorch, and what LitData reads, fetched into .torch (5 GB; needs Linux on x86-64 or 64-bit ARM)
	@$(BIN)/pytest -q tests/pipelines/training/test_set_torch.py
	@PYTHONPATH=.torch $(BIN)/pytest -q tests/pipelines/training/test_set_export.py -k litdata

test-peers: fetch-peers ## exports, Zarr sets and the files for Kubernetes by the tools they are for, fetched into .peers (1 GB)
	@PYTHONPATH=.peers $(BIN)/pytest -q tests/pipelines/training/test_set_export.py tests/pipelines/training/test_set_windows.py tests/pipelines/labels/test_label_formats.py tests/packaging/test_kubernetes_schemas.py

test-runners: fetch-runners ## the graphs on Prism, built into .runners (needs Go)
	@$(BIN)/pytest -q -k prism tests/pipelines/runners tests/pipelines/training/test_set_building.py

fetch-torch: setup
	@[ -d .torch/litdata ] || $(BIN)/pip install --quiet --no-deps --require-hashes --target .torch -r requirements-torch.lock

fetch-peers: setup
	@[ -d .peers/xarray ] && [ -d .peers/kubernetes_validate ] || $(BIN)/pip install --quiet --no-deps --require-hashes --target .peers -r requirements-peers.lock

fetch-runners: setup
	@sh scripts/runners.sh

gate: setup ## 100,000 random rules on both engines: not one verdict may differ (about ten minutes)
	@CATCHMENT_GATE_EXPRESSIONS=100000 $(BIN)/pytest -q -n $(JOBS) -k many_random_expressions tests/pipelines/policy

core-kills: setup ## 300 SIGKILLs over broker, bridges and run loop; runs, replays and maintenance killed before and after each durable step
	@CATCHMENT_KILLS=300 CATCHMENT_THOROUGH=1 CATCHMENT_LEAST_KILLS=600 $(BIN)/pytest -q -n $(JOBS) --dist worksteal -m slow -k "killed_at_any_durable_step or whole_core_is_killed" tests/faults/test_faults_core_kills.py tests/pipelines/ingest/test_ingest_crash.py tests/pipelines/ingest/test_ingest_replay.py tests/pipelines/lake/test_lake_maintenance.py

bucket-kills: setup ## maintenance and retags of a lake in a bucket killed at each put, delete and commit (about an hour)
	@CATCHMENT_THOROUGH=1 $(BIN)/pytest -q -n $(JOBS) -m slow -k "killed_at_any_put" tests/pipelines/lake/test_lake_maintenance_on_s3.py

power-cuts: setup ## 100,000 simulated power cuts of the spool
	@PYTHONPATH=$(CURDIR) $(BIN)/python tests/faults/powercut.py --states 100000 --processes $(JOBS)

soak: setup ## a million samples into a lake while agent, broker, bridge and run loop are killed 500 times
	@PYTHONPATH=$(CURDIR) $(BIN)/python tests/faults/soak.py --samples 1000000 --kills 500

fuzz: setup ## 100,000 mutated inputs per format through whole runs (three minutes of CPU, in all)
	@CATCHMENT_FUZZ=100000 $(BIN)/pytest -q -n $(JOBS) --dist worksteal -m slow -k mutated tests/pipelines/ingest/test_ingest_fuzz.py

mutants: setup ## small changes to the modules that decide: does a test of each notice? (ten minutes; MODULES="ranges quota": those)
	@$(BIN)/python tests/mutants/mutants.py --jobs 2 $(MODULES)

check: setup ## lint, format, types, import arrows
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: setup ## let the formatter decide
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: setup ## the benchmarks, small: do they run, what do they print
	@$(BIN)/python scripts/bench_smoke.py

lock: setup ## choose the packages' versions again (needs uv)
	@sh scripts/lock.sh

wheel: setup ## the wheel, in dist/
	@$(BIN)/python -m build --wheel --no-isolation

wheels: setup ## is every package of the agent there ready-made, for each Python and machine? (asks the package index)
	@$(BIN)/python scripts/check_wheels.py

deb: setup ## the agent as a .deb for this distribution and machine, in dist/
	@sh deploy/edge/build-deb.sh

SYSTEMD_ROOT ?= /var/tmp/catchment-systemd
systemd-units: setup ## the units under a real systemd, on a machine made once in SYSTEMD_ROOT (root, some minutes; MIRROR=... if need be)
	@sh scripts/systemd-root.sh $(SYSTEMD_ROOT) $(MIRROR)
	@CATCHMENT_SYSTEMD_ROOT=$(SYSTEMD_ROOT) $(BIN)/pytest -q -n 0 tests/packaging/test_units_under_systemd.py

clean: ## all that setup and the tests made
	@rm -rf .venv dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
