# Needs Python 3.11 to 3.13, git and make. `make help` lists what there is.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help
help: ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

# Compiled once here, so that the first run does not compile 180 packages while somebody waits. uv installs in seconds; where it cannot (an index that only pip is set up for), plain pip takes the same lock file.
$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
		|| { echo "Python 3.11, 3.12 or 3.13 is needed; try: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing the locked environment into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -r requirements.lock \
		|| $(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -e . \
		|| $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

.PHONY: setup
setup: $(STAMP) ## the virtual environment, from the lock file

.PHONY: check
check: setup ## ruff, strict types, the floors of the house, docs up to date
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python docs/build.py --check

.PHONY: fix
fix: setup ## formats, mends what ruff can mend, writes generated docs
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/python docs/build.py

.PHONY: demo
demo: setup ## flights: a model is served, ages, is retrained and replaced, in minutes
	@$(BIN)/python examples/flights/demo.py

.PHONY: test
test: setup ## every test but those that take minutes
	$(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder -q -m "not slow"

.PHONY: bench
bench: setup ## the races against other tools, each in an environment of its own
	$(BIN)/python -m benchmarks

.PHONY: bench-serving
bench-serving: setup ## how fast models are served, beside six peers (needs wrk; 30 minutes of it are the soak)
	$(BIN)/python -m benchmarks.serving

.PHONY: bench-loop
bench-loop: setup ## drift, false alarms, rollouts and the whole loop, beside Evidently, NannyML and Flagger's rule
	$(BIN)/python -m benchmarks.loop

.PHONY: bench-packaging
bench-packaging: setup ## how fast a model becomes an image, beside a Dockerfile (needs root, buildah, podman, skopeo, docker-registry, debootstrap)
	$(BIN)/python -m benchmarks.packaging

.PHONY: test-slow
test-slow: setup ## the tests that take minutes: kills, fuzzed requests, containers, a real Prometheus
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -q -m slow

.PHONY: test-failed
test-failed: setup ## the tests that failed last, one after the other
	$(BIN)/python -m pytest -n 0 --last-failed --last-failed-no-failures none --maxfail 3 -q

.PHONY: lock
lock: ## resolves the lock files anew (needs uv)
	uv pip compile pyproject.toml --all-extras --universal --generate-hashes --no-emit-index-url \
		--python-version 3.11 --custom-compile-command "make lock" -q -o requirements-all.lock
	uv pip compile pyproject.toml --extra dev --universal --generate-hashes --no-emit-index-url --no-annotate \
		--python-version 3.11 --custom-compile-command "make lock" -q -c requirements-all.lock -o requirements.lock
