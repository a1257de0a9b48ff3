# Every target sets up what it needs; a second run sets nothing up again.
.DEFAULT_GOAL := help
.PHONY: help setup demo serve test test-faults test-images test-architectures check format clean packages

BIN := .venv/bin
# More arguments for the program behind a target: make test ARGS="-k surgery"
ARGS ?=

help: ## Show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | while IFS="$$(printf '\t')" read -r name text; do printf '  make %-12s %s\n' "$$name" "$$text"; done

setup: packages ## Prepare everything: .venv, and PostgreSQL, Redis and Chromium for the tests
	@scripts/test-servers

packages:
	@scripts/setup

demo: packages ## Prune the bundled model through the real service, and show what came out
	@$(BIN)/python examples/demo.py $(ARGS)

serve: packages ## Run API, dashboard and one worker on http://127.0.0.1:8321, with data in ./data
	@$(BIN)/elder-server serve $(ARGS)

# Two processes, each with one thread for torch: more would only wait for each other on two cores.
test: setup ## Run every test: unit, integration on PostgreSQL and Redis, browser
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadscope $(ARGS)

# In one process: what they measure is how long the service takes to recover. -m: those that `make test` leaves out, too.
test-faults: setup ## Kill, freeze and cut off workers, database and broker; write docs/reliability.md (half an hour)
	@mkdir -p build && : > build/faults.jsonl
	@OMP_NUM_THREADS=1 ELDER_TEST_FAULT_RECORDS=$(CURDIR)/build/faults.jsonl $(BIN)/python -m pytest tests/faults -m "faults or not faults" $(ARGS)
	@$(BIN)/python -m tests.faults.records

test-images: packages ## Install the worker image's packages as its Dockerfile does (long; needs disk for torch)
	@$(BIN)/python -m pytest -m images $(ARGS)

# The page last: what fails before leaves it as it was.
test-architectures: packages ## Remove layers from tiny models of every architecture, show what holds, write docs/architectures.md
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not images" $(ARGS) $$(grep -lE '\beach(_seeing)?\(' tests/unit/elder_core/test_*.py)
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.unit.elder_core.acceptance

check: packages ## Check format, lint, types, import rules, templates, Dockerfile and compose file
	@echo format; $(BIN)/ruff format --check --quiet --diff .
	@echo lint; $(BIN)/ruff check --quiet .
	@echo types; $(BIN)/mypy --no-error-summary
	@echo import rules; found=$$($(BIN)/lint-imports --no-logo 2>&1) || { echo "$$found"; exit 1; }
	@echo templates; $(BIN)/djlint --lint --quiet api elder_core
	@echo Dockerfile; $(BIN)/hadolint Dockerfile
	@echo compose file; $(BIN)/check-jsonschema -q --builtin-schema vendor.compose-spec docker-compose.yml

format: packages ## Format the code and mend what the linter can mend
	@$(BIN)/ruff format --quiet . && $(BIN)/ruff check --quiet --fix .

clean: ## Remove what was built, downloaded or written here, the .venv too; data/ and demo-output/ stay
	@rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis build dist test-output
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
