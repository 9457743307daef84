# make quickstart   an environment in .venv and a finished sweep
# make test         linters, type checks and the tests, without the fault tests
# make test-faults  the fault tests: kills, freezes and removes processes, nodes and folders under running sweeps
PYTHON ?= python3
# tests at once; those of one file stay together
WORKERS ?= 2
BIN := .venv/bin

.PHONY: quickstart install test test-faults lint clean
quickstart: .venv/.installed
	$(BIN)/clray sweep sweeps/quickstart.yaml

install: .venv/.installed-dev

# An older pip works, but takes twice as long to resolve. Two processes compile what was installed faster than pip's one.
.venv/.made:
	$(PYTHON) -m venv .venv
	-$(BIN)/python -m pip install --quiet --upgrade pip
	touch $@

.venv/.installed: .venv/.made pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --no-compile -e . -c constraints.txt
	$(BIN)/python -m compileall -q -j 0 .venv/lib >/dev/null 2>&1 || true
	touch $@

.venv/.installed-dev: .venv/.made pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --no-compile -e '.[dev]' -c constraints.txt
	$(BIN)/python -m compileall -q -j 0 .venv/lib >/dev/null 2>&1 || true
	touch $@ .venv/.installed

test: .venv/.installed-dev lint
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile

test-faults: .venv/.installed-dev
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile -m faults -W 'ignore:os.fork:RuntimeWarning' tests/faults

lint: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf .venv build results *.egg-info

# Resolves the GPU extra without installing it: JAX and torch must agree on the CUDA packages.
.PHONY: check-cuda
check-cuda: .venv/.installed
	$(BIN)/python -m pip install --quiet --dry-run --ignore-installed -e '.[cuda]' -c constraints.txt
