# Every target is one or two lines that can be typed without make, too. `make` alone explains them.

VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/stamps
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
INSTALL_SELF := $(PIP) install --no-deps --no-build-isolation --editable .
CODE := src tests scripts $(wildcard examples) $(wildcard benchmarks)

export VENV

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run test check format lock secrets clean setup setup-run

help: ## Explain the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 18
	@echo
	@echo '  Variables: make run HOST=... PORT=... STORE=...; make test ARGS="-k name -x"'

run: setup-run ## Serve on http://127.0.0.1:6969, sessions kept in data/sessions.db
	@exec $(BIN)/webai-api serve --embedded $(if $(STORE),--store '$(STORE)') $(if $(HOST),--host '$(HOST)') $(if $(PORT),--port '$(PORT)') $(ARGS)

test: setup ## Run the tests against real Redis processes (ARGS are handed to pytest)
	@server=$$($(BIN)/python scripts/find_redis.py $(VENV)/redis) && WEBAI_REDIS_SERVER="$$server" exec $(BIN)/pytest $(ARGS)

check: setup ## Check format, lint, types, import contracts, file sizes and container files
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/mypy $(CODE)
	$(BIN)/lint-imports --no-cache
	$(BIN)/python scripts/check_sizes.py src=400 tests=600
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec compose.yaml
	$(BIN)/hadolint Dockerfile

format: setup ## Format the code and mend what ruff can mend by itself
	$(BIN)/ruff check --fix-only $(CODE)
	$(BIN)/ruff format $(CODE)

setup: $(STAMPS)/dev ## Install everything that tests and checks need into .venv

setup-run: $(STAMPS)/run ## Install what the server needs into .venv

secrets: $(STAMPS)/venv ## Make secrets/ for compose.yaml: a Redis password and an API key (nothing is overwritten)
	@$(BIN)/python scripts/make_secrets.py secrets

# Pins are kept where they still fit; `make lock ARGS=--upgrade` takes the newest versions.
LOCK = $(VENV)/lock/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --custom-compile-command 'make lock' $(ARGS)
lock: $(STAMPS)/venv ## Pin the dependencies again, with hashes (requirements/*.txt)
	$(BIN)/python -m venv $(VENV)/lock
	$(VENV)/lock/bin/python -m pip --disable-pip-version-check --quiet install --require-hashes -r requirements/lock.txt
	$(LOCK) requirements/lock.in -o requirements/lock.txt
	$(LOCK) pyproject.toml --all-extras requirements/run.in -o requirements/run.txt
	$(LOCK) pyproject.toml --all-extras requirements/run.in requirements/dev.in -o requirements/dev.txt

clean: ## Remove the virtual environment, caches and builds (data/ and secrets/ stay)
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find src tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is newer than what it was made from, or it is made again. The tests' tools include the server's needs.
$(STAMPS)/venv:
	@scripts/make-venv $(VENV)
	@mkdir -p $(STAMPS)
	@touch $@

$(STAMPS)/run: requirements/run.txt pyproject.toml $(STAMPS)/venv
	@echo 'installing what the server needs'
	@$(PIP) install --require-hashes -r requirements/run.txt
	@$(INSTALL_SELF)
	@touch $@

$(STAMPS)/dev: requirements/dev.txt pyproject.toml $(STAMPS)/venv
	@echo 'installing what the tests and checks need'
	@$(PIP) install --require-hashes -r requirements/dev.txt
	@$(INSTALL_SELF)
	@touch $(STAMPS)/run $@
