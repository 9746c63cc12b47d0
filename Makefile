# Two commands on a fresh machine: make demo, make test. Each sets up what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test bench lint vllm-test clean

$(VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

demo: $(VENV)/.ready ## fit on a shipped capture, replay another, write the report
	$(BIN)/frontier demo --out out/demo

test: $(VENV)/.ready ## everything that needs neither a GPU nor vLLM
	$(BIN)/pytest -n 2 -m 'not vllm and not bench' tests traces simulator replay validation reports

bench: $(VENV)/.ready ## CPU-time benchmarks
	$(BIN)/pytest -m bench tests/benchmarks

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) .venv-vllm out build dist *.egg-info
