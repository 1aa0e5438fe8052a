# `make run`: install, fetch the data, run the quick study.  `make test`: everything that must hold.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: run plan install data test lint types pytest test-long site test-versions release bench gpu reliability docs findings clean

run: plan $(VENV)/installed data
	$(BIN)/ahf reproduce --preset quick

plan:
	@echo "make run: installs ahf with PyTorch into $(VENV), finds Fashion-MNIST, then trains the preset quick"
	@sed -n 's/^# On two cores: /  the training takes, on two cores: /p' configs/quick.yaml

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml $(wildcard ahf_cli/optim/layers/_selected.[ch])
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

data: $(VENV)/installed
	$(BIN)/ahf data fetch

test: lint types pytest

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed-dev
	$(BIN)/mypy

# One thread each: a torch process whose threads spin beside busy ones is many times slower.
pytest: $(VENV)/installed-dev data
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

$(VENV)/installed-examples: $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[examples]'
	touch $@

$(VENV)/installed-log: $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[log]'
	touch $@

test-long: $(VENV)/installed-dev $(VENV)/installed-examples $(VENV)/installed-log data
	$(BIN)/ahf data fetch bible
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m long

$(VENV)/installed-site: $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[site]'
	touch $@

# A warning is an error.  The cells of the tutorials run, and nothing comes from a network.
site: $(VENV)/installed-site data
	$(BIN)/python -m sphinx -q -W --keep-going -b html -d build/doctrees docs build/site

# Other Pythons of this machine, of pyenv as well: make test-versions VERSIONS=3.13 TESTS=tests/test_search.py
VERSIONS ?= 3.12 3.13

test-versions: $(VERSIONS:%=test-python%)

test-python%: build/python%/installed data
	OMP_NUM_THREADS=1 build/python$*/bin/python -m pytest -n 2 --dist worksteal $(TESTS)

.PRECIOUS: build/python%/installed
build/python%/installed: pyproject.toml
	PATH="$$(echo $$HOME/.pyenv/versions/$*.*/bin | tr ' ' :):$$PATH"; python$* -m venv build/python$*
	build/python$*/bin/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

release: $(VENV)/installed-dev
	.ci/release "$(URL)"

$(VENV)/installed-bench: $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[bench]'
	touch $@

bench: $(VENV)/installed-bench data
	$(BIN)/python -m benchmarks

# Without internet it installs nothing: what it needs lies in build/gpu, packed by the same command elsewhere.
# A rehearsal: make gpu PACK="--python 3.11" RUN="--device cpu --small"
gpu:
	$(or $(wildcard $(BIN)/python),$(PYTHON)) -m benchmarks.gpu pack $(PACK)
	$(or $(wildcard $(BIN)/python),$(PYTHON)) -m benchmarks.gpu run $(RUN)

reliability: $(VENV)/installed-dev
	$(BIN)/python -m benchmarks.reliability

docs: $(VENV)/installed
	$(BIN)/ahf config recipes --markdown > docs/recipes.md

findings: $(VENV)/installed
	$(BIN)/python -m docs.findings

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache
