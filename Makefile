# Atoll's commands. `make help` lists them; each prepares by itself what it needs.

.DEFAULT_GOAL := help
.PHONY: help setup demo check quick test chaos soak matrix bench simulate docs wheel clean

ATOLL := .venv/bin/atoll
PY := .venv/bin/python
# Workers of the test-suite: each tier's server with its tests is one worker's; tests wait more than they compute.
JOBS ?= 3
# The run that `make demo` replays: a recorded one where it is there, else a small one of our own.
RUN ?= $(firstword $(wildcard ../shared/trajectories/basic_gui_mode.json) examples/create-and-serve.json)

help: ## Show this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | \
		while IFS="$$(printf '\t')" read -r name text; do printf '  make %-8s %s\n' "$$name" "$$text"; done

setup: ## Make .venv, install what is needed, build the template `base` once
	@scripts/setup.sh run
	@$(ATOLL) template build base

demo: ## Replay a recorded agent run in a sandbox and fetch the page that the agent serves
	@scripts/setup.sh run
	@$(ATOLL) template build base
	@$(ATOLL) replay --embedded --soft-timeout 1 --fetch 8000 $(RUN)

check: ## Lint, format, strict types, import rules
	@scripts/setup.sh run
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	$(PY) -m pytest -q tests/style

quick: ## Run what takes a minute or two: unit, style, contracts without a wall, one sandbox by the SDK
	@scripts/setup.sh test
	@$(ATOLL) template build base
	$(PY) -m pytest -q -n 2 --dist loadscope --durations 10 -m "not slow" -k "not TestNamespaces and not TestGvisor" \
		tests/unit tests/style tests/contract/test_backends.py tests/contract/test_wire_*.py \
		tests/integration/test_smoke.py $(ARGS)

test: ## Run the whole test-suite
	@scripts/setup.sh test
	@$(ATOLL) template build code-interpreter-v1
	$(PY) -m pytest -q -n $(JOBS) --dist loadscope --durations 25 $(ARGS)

chaos: ## Kill a server's processes while sandboxes live (SEED, FAULTS, TIER): nothing acknowledged is lost
	@scripts/setup.sh test
	$(PY) tests/chaos/run.py --faults $(or $(FAULTS),500) $(if $(SEED),--seed $(SEED)) $(if $(TIER),--tier $(TIER))

soak: ## Make, use, pause and end very many sandboxes (CYCLES, PAUSES, TIER): nothing is left, nothing grows
	@scripts/setup.sh test
	$(PY) tests/soak/run.py --cycles $(or $(CYCLES),10000) --pauses $(or $(PAUSES),2000) $(if $(TIER),--tier $(TIER))

matrix: ## Run old and new versions of the published clients and of OpenHands; writes docs/compatibility.md
	@scripts/setup.sh test
	@$(ATOLL) template build code-interpreter-v1
	$(PY) tests/matrix/run.py $(ARGS)
	ATOLL_TEST_OPENHANDS=every $(PY) -m pytest -q tests/integration/test_runtime_openhands.py

bench: ## Measure, each figure beside its floor; results in benchmarks/
	@scripts/setup.sh bench
	@$(ATOLL) template build code-interpreter-v1
	$(PY) benchmarks/run.py $(ARGS)
	$(PY) benchmarks/load.py

docs: ## Build the documents, which the server then serves at /docs
	@scripts/setup.sh run
	@$(PY) scripts/docs.py

wheel: docs ## Build the wheel, with the documents in it, into dist/
	$(PY) -m pip wheel --quiet --no-deps --wheel-dir dist .

simulate: ## Place a million sandboxes on 10,000 simulated nodes with the server's own placement (minutes)
	@scripts/setup.sh run
	$(PY) benchmarks/simulate.py $(ARGS)

clean: ## Remove .venv and caches (templates and data directories stay)
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -rf tests/integration/js/node_modules
