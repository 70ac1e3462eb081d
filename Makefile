# Everything runs in .venv, which the first target that needs it makes; nothing outside this folder is changed.
PYTHON ?= python3
CONFIG ?= configs/demo.yaml
ARGS ?=
# Of "make gpu": minutes for all checks together, and where gpu.json goes.
MINUTES ?= 8
OUT ?= build/gpu
# A folder with a CUDA build of torch, and what is installed there if it is missing.
FAKE_CUDA ?= build/fake-cuda
# Three equal signs, or pip would take a CPU build that lies nearer.
FAKE_CUDA_TORCH ?= torch===2.13.0
# Test processes: one more than two cores, since many tests wait for servers.
JOBS ?= 3

BIN := .venv/bin
# Stamps of finished installations: of what a run needs, and of what tests and checks need besides.
RUNS := .venv/.installed
INSTALLED := .venv/.installed-dev
UV := uv==0.13.9
# What must hold with every version of transformers: the code of an exported folder, and what we tell people to type.
PORTABLE := tests/model tests/export
# What must hold with the oldest allowed packages besides: the data stages.
DATA := tests/corpus tests/shuffle tests/samples tests/foundation
CODE := kexue_train flows tests benchmarks claims docs install.py

.DEFAULT_GOAL := help
.PHONY: help venv pretrain docs test test-fast test-python test-peers test-oldest test-newest test-fake-cuda gpu lock check format clean

help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(INSTALLED) ## make .venv with the pinned packages of runs and tests (once; PYTHON=... chooses the interpreter)

pretrain: $(RUNS) ## the whole run of CONFIG (default configs/demo.yaml); again: goes on where it stopped; ARGS=--fresh: start over
	@$(BIN)/python -m flows.pretrain_pipeline $(CONFIG) $(ARGS)

docs: $(INSTALLED) ## the documentation as a site: open build/site/index.html (a warning is an error)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

test: $(INSTALLED) ## all tests
	@$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile --no-loadscope-reorder --durations 30 $(ARGS)

test-fast: $(INSTALLED) ## the tests that start no processes
	@$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile -m "not slow" $(ARGS)

test-python: ## the fast tests with another interpreter (PYTHON=python3.14), in an environment of its own under build/
	@$(ASK_VERSION)
	@$(PYTHON) install.py build/$(notdir $(PYTHON)) all,dev
	@build/$(notdir $(PYTHON))/bin/python -m pytest -q -n $(JOBS) --dist loadfile -m "not slow" $(ARGS)

test-peers: $(INSTALLED) ## transformers' own tests of a model (downloaded into build/), on the code of an exported folder
	@$(BIN)/python -m tests.peers.run

test-oldest: ## the tests of data stages, model and export with the oldest allowed versions, in an environment of its own
	@test -x build/oldest/bin/python || $(PYTHON) -m venv build/oldest
	@build/oldest/bin/python -m pip install -q hypothesis pytest pytest-timeout pytest-xdist $$(build/oldest/bin/python -m tests.oldest_versions)
	@build/oldest/bin/python -m pytest -q -n $(JOBS) --dist loadfile -m "not slow" $(DATA) $(ARGS)
	@build/oldest/bin/python -m pytest -q -n $(JOBS) --dist loadfile $(PORTABLE) $(ARGS)

test-newest: $(INSTALLED) ## the tests of model and export with the newest transformers and otherwise the pinned packages
	@test -x build/newest/bin/python || $(BIN)/python -m venv --without-pip build/newest
	@$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > "$$(build/newest/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/pinned.pth"
	@$(BIN)/python -m pip --python build/newest/bin/python install -q --upgrade transformers
	@build/newest/bin/python -m pytest -q -n $(JOBS) --dist loadfile $(PORTABLE) $(ARGS)

test-fake-cuda: $(INSTALLED) | $(FAKE_CUDA) ## training as on CUDA without a GPU (FAKE_CUDA=folder: where torch is that is built for it, 5 GB)
	@PYTHONPATH=$(abspath $(FAKE_CUDA)) $(BIN)/python -m pytest -q -n0 tests/fake_cuda $(ARGS)

gpu: ## every CUDA path on the GPU of this machine, compared and timed (MINUTES=8 OUT=build/gpu), with the packages that are there
	@$(or $(wildcard $(BIN)/python),$(PYTHON)) -m benchmarks.gpu --minutes $(MINUTES) --out $(OUT) $(ARGS)

lock: ## choose versions anew for what pyproject.toml asks for (ARGS=--upgrade: the newest), into requirements.lock
	@test -x build/uv/bin/uv || { $(PYTHON) -m venv build/uv && build/uv/bin/python -m pip install -q --disable-pip-version-check '$(UV)'; }
	@build/uv/bin/uv pip compile -q pyproject.toml --extra all --extra dev --universal --python-version 3.11.5 --generate-hashes \
	  --no-annotate --custom-compile-command 'make lock' -o requirements.lock $(ARGS)
	@$(PYTHON) -m tests.pins > constraints.txt

check: $(INSTALLED) ## formatting, lint, types, import directions
	@$(BIN)/ruff format --check $(CODE)
	@$(BIN)/ruff check $(CODE)
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: $(INSTALLED) ## rewrite the code in the house format and fix what lint can fix
	@$(BIN)/ruff format $(CODE)
	@$(BIN)/ruff check --fix $(CODE)

clean: ## delete caches and build products (not .venv, not runs/)
	@rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	@find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +

$(FAKE_CUDA):
	@echo "Installing $(FAKE_CUDA_TORCH) for CUDA into $@: some minutes and 5 GB, once"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-input --target $@.partial '$(FAKE_CUDA_TORCH)'
	@mv $@.partial $@

# Only a finished installation leaves the stamp. Without it .venv may be half made, so it is made anew; with an old one
# (the dependencies changed) it is brought up to date.
$(RUNS): pyproject.toml constraints.txt
	@$(ASK_VERSION)
	@echo "Installing the packages of a run into .venv, once: 2 GB with PyTorch for CPUs, 6 GB with that for CUDA; some minutes"
	@test -e $@ || rm -rf .venv
	@rm -f $@
	@$(PYTHON) install.py .venv all
	@touch $@

$(INSTALLED): $(RUNS)
	@echo "Installing what tests and checks need besides, once: up to 1.5 GB more"
	@$(PYTHON) install.py .venv all,dev
	@touch $@

define ASK_VERSION
command -v $(PYTHON) >/dev/null || { echo "make: '$(PYTHON)' is not on the PATH; install Python 3.11 or newer, or give one: make venv PYTHON=/path/to/python3.11" >&2; exit 1; }; \
$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.exit(None if sys.version_info >= (3, 11) else "make: $(PYTHON) is Python " + v + ", and 3.11 or newer is needed; give one: make venv PYTHON=/path/to/python3.11")'
endef
