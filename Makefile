# `make demo` trains the example, `make test` lints and tests, `make test-slow` runs the slow tests, `make test-all` both,
# `make docs` builds the documentation in docs/site.
# All make their own environment first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

export TF_CPP_MIN_LOG_LEVEL ?= 2

.PHONY: demo test test-slow test-all lint docs benchmark clean

demo: $(INSTALLED)
	$(BIN)/python examples/experiments/demo.py $(ARGS)

test: lint
	$(BIN)/python -m pytest -n 2 -m "not slow" $(ARGS)

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 -m slow $(ARGS)

test-all: test test-slow

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --config-file docs/mkdocs.yml

benchmark: $(INSTALLED)
	$(BIN)/python examples/benchmarks/steps.py $(ARGS)

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) demo_output toy_gallery_output train_output study_output benchmark_output compared docs/site build dist *.egg-info
