# The daily commands. `make` alone lists them; each one sets up first what it needs.
SHELL  := /bin/bash
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
DEMO   := $(VENV)/.installed-demo
PIP    := $(BIN)/python -m pip -qq --no-input --disable-pip-version-check install -c constraints.txt
TYPES  := build/types
# Narrow a test run: make test TESTS=tests/unit. Five at a time on two cores: much of the time servers start and stop.
TESTS  ?= tests
CHECKED ?= small_tensors large_tensors remote_cold
PYTEST := $(BIN)/python -m pytest -q
FULL   := -n 5 --dist worksteal
ROUNDS ?= 5

# Tests of the page run in a browser. Playwright's own one is not downloaded.
CHROMIUM := command -v chromium chromium-browser >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && echo "setup: chromium" \
  && { apt-get -qq update && apt-get -qq install -y --no-install-recommends chromium fonts-dejavu-core; } >/dev/null; } \
  || echo "setup: no chromium here, so the tests of the page in a browser do not run: install it, or name one in CHROMIUM"

# A server of Azure Blob Storage for the tests, where there is npm.
AZURITE := command -v npm >/dev/null && echo "setup: azurite" && npm install --silent --no-audit --no-fund --prefix $(VENV)/azurite azurite@3.35.0 >/dev/null \
  || echo "setup: no azurite here (it needs node and npm), so the tests of Azure do not run"

export TF_CPP_MIN_LOG_LEVEL ?= 3
export TF_ENABLE_ONEDNN_OPTS ?= 0
# Tests start hundreds of processes, each of which would compile the library anew where this is set.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-long shake matrix lint view typecheck bench bench-check peers chaos network simulate shard-lint interleavings soak soak-doors soak-files upgrade docs site pictures vendor clean

help:
	@printf 'make TARGET, where TARGET is one of\n\n'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## build .venv: the library, its test servers and every tool (the other targets run this when needed)

# First what the demo needs, which is all that `make demo` waits for. A half-built environment is completed, a broken one
# is made anew. torch comes first and alone: what follows is resolved around it and never replaces it.
$(DEMO): pyproject.toml setup.cfg constraints.txt
	@echo "setup: virtual environment in $(VENV)"
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo "setup: Python 3.10 or newer is needed, this is $$($(BIN)/python -V). Name another: make setup PYTHON=python3.11"; exit 1; }
	@echo "setup: PyTorch (the largest download)"
	@$(PIP) torch
	@echo "setup: TensorFlow, MongoDB and the library"
	@$(PIP) -e '.[demo]'
	@touch $@

# For the tests of transforms alone (tests/vision.py): beside PyTorch for CPUs, importing torchvision fails.
$(STAMP): $(DEMO)
	@echo "setup: what the tests and the tools need"
	@$(PIP) -e '.[dev]'
	@$(PIP) --no-deps --upgrade --target $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/tests_only torchvision kornia kornia_rs
	@$(CHROMIUM)
	@$(AZURITE)
	@touch $@
	@echo "setup: done"

demo: $(DEMO) ## digits into a warehouse, training killed and resumed, Keras on the same data (results in demo/)
	@$(BIN)/python examples/demo.py demo

test: $(STAMP) lint typecheck ## lint, strict type check and all tests (TESTS=... for a part of them)
	@$(PYTEST) $(FULL) $(TESTS)

test-long: $(STAMP) lint typecheck ## all tests with every combination where make test runs pairs, then soak, chaos and network
	@MATRICES=all $(PYTEST) $(FULL) $(TESTS)
	@$(BIN)/python tests/long/soak.py
	@PYTHONPATH=. $(BIN)/python tests/long/soak_samples.py
	@PYTHONPATH=. $(BIN)/python tests/long/kill_ingest.py
	@$(BIN)/python tests/long/chaos.py
	@$(BIN)/python tests/long/network.py

shake: $(STAMP) ## all tests, or TESTS=..., in ROUNDS=5 rounds on busy cores, with pauses (PAUSES=--pauses); one that was stopped goes on
	@$(BIN)/python tests/shake.py $(PAUSES) $(ROUNDS) $(FULL) $(TESTS)

matrix: $(STAMP) ## all ways to end, start workers, resume and cache, with each other (six minutes and more)
	@MATRICES=all $(PYTEST) $(FULL) tests/acceptance/test_matrix.py

lint: $(STAMP) view ## ruff over everything, and the contract of the layers
	@$(BIN)/ruff check .
	@cd $(TYPES) && PYTHONPATH=. ../../$(BIN)/lint-imports ../../pyproject.toml --no-cache --no-logo

# The tree as programs import it: the folders of integrations/ under their names, and a user's program beside them.
view:
	@rm -rf $(TYPES) && mkdir -p $(TYPES)/tensordb_data
	@for path in tensordb_data/* integrations/torch integrations/tf integrations/ray; do ln -s ../../../$$path $(TYPES)/tensordb_data/; done
	@ln -s ../../tests/typing/usage.py $(TYPES)/usage.py

typecheck: $(STAMP) view ## mypy --strict over the library, and over a program that uses it
	@cd $(TYPES) && ../../$(BIN)/mypy --config-file ../../pyproject.toml --cache-dir ../mypy -p tensordb_data -m usage

bench: $(STAMP) ## every benchmark at full size, one after the other (benchmarks/README.md; BENCH=--quick for a glance)
	@for script in $$(grep -l '^"""B[0-9]' benchmarks/*.py benchmarks/*/*.py); do echo; $(BIN)/python $$script $(BENCH) || exit 1; done

bench-check: $(STAMP) ## the benchmarks that have a committed figure of this kind, without peers: what has fallen by more than its spread
	@for name in $(CHECKED); do echo; $(BIN)/python benchmarks/$$name.py --peers none || exit 1; done
	@$(BIN)/python benchmarks/shared/check.py

peers: $(STAMP) ## what the benchmarks compare with, into .venv (another python-dateutil than the tests have, too)
	@$(BIN)/python -m pip -qq --no-input --disable-pip-version-check install --no-deps -r benchmarks/requirements.txt

soak: $(STAMP) ## saves, then all that is done to samples, killed at 200 random points each: nothing lost, nothing foreign touched
	@$(BIN)/python tests/long/soak.py
	@PYTHONPATH=. $(BIN)/python tests/long/soak_samples.py

soak-doors: $(STAMP) ## ingest and export commands, killed at 100 random points each and run again: all rows once, no half file
	@PYTHONPATH=. $(BIN)/python tests/long/kill_ingest.py

soak-files: $(STAMP) ## 10,000 cut, flipped and made up inputs for each format that is read: a value or an error of ours
	@$(BIN)/python -m tests.hostile

interleavings: $(STAMP) ## gc within each step of a writer, saver, reader, compaction, prune and gc, and each within gc
	@MATRICES=all $(PYTEST) $(FULL) tests/integration/housekeeping/test_interleavings.py

shard-lint: $(STAMP) ## the tests, or TESTS=..., with a look at each command: what would a sharded cluster refuse, or send to all shards
	@$(PYTEST) -n 0 -p tests.shard_lint $(TESTS)

chaos: $(STAMP) ## workers, evaluators and a deployer killed at random for 3 minutes, the database twice; all accounted for
	@$(BIN)/python tests/long/chaos.py

network: $(STAMP) ## connections to MongoDB that are reset, torn, lost, paused, slowed and refused, 100 times; all accounted for
	@$(BIN)/python tests/long/network.py

simulate: $(STAMP) ## 1,000 ranks of 4 workers in virtual time, elastic, with failures: each sample once in each pass; requests a second
	@$(BIN)/python tests/long/simulate.py

upgrade: $(STAMP) ## a folder brought to MongoDB 7.0 and 8.0, with real ones: make upgrade MONGOD7=... MONGOD8=...
	@MONGOD7='$(MONGOD7)' MONGOD8='$(MONGOD8)' PYTHONPATH=. $(BIN)/python tests/long/upgrade_mongod.py

docs: $(STAMP) ## write docs/cli.md from --help, and run every code block of README.md and docs/
	@$(BIN)/python docs/generate_cli.py
	@$(PYTEST) tests/docs

site: $(STAMP) ## the documentation as a site, from docs/ and the docstrings (build/site/index.html)
	@rm -rf build/site
	@$(BIN)/python -m sphinx -q -W --keep-going -E -d build/doctrees docs build/site
	@echo "build/site/index.html"

pictures: $(STAMP) ## the pictures of docs/ui.md, taken anew in Chromium
	@PICTURES=1 $(PYTEST) tests/ui/test_pictures.py

vendor: ## fetch the files of others that the page of a warehouse needs, and compare them with their checksums
	@rm -rf build/vendor && mkdir -p build/vendor && cd build/vendor && npm pack --silent uplot@1.6.32 >/dev/null && tar xzf uplot-1.6.32.tgz
	@cd build/vendor/package && cp LICENSE dist/LICENSE.uPlot && cd dist && sha256sum -c ../../../../tensordb_data/ui/static/vendor/SHA256SUMS
	@cp build/vendor/package/dist/{LICENSE.uPlot,uPlot.iife.min.js,uPlot.min.css} tensordb_data/ui/static/vendor/

clean: ## remove builds, caches and the demo's results; keeps .venv
	@rm -rf build dist demo *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis benchmarks/results
	@find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
