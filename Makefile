# The whole project in a few words. `make demo` and `make test` need nothing but Python 3.11 and this checkout.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-all lint proto bench clean

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

demo: $(STAMP)   ## five nodes on a ring, both rules, against alone and pooled: the table, runs/demo/report.html
	$(BIN)/python deploy/demo/prepare.py assets
	$(BIN)/conlora testbed run deploy/demo/demo.yaml -o runs/demo --overwrite

assets: $(STAMP)
	$(BIN)/python deploy/demo/prepare.py assets

test: $(STAMP) assets   ## everything under 12 minutes on 2 cores
	$(BIN)/pytest -m "not long and not bench"

test-all: $(STAMP) assets   ## also what takes longer
	$(BIN)/pytest -m "not bench"

lint: $(STAMP)   ## style, types, import contracts, generated code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python proto/generate.py --check

proto: $(STAMP)   ## regenerates node/conlora/v1
	$(BIN)/python proto/generate.py

bench: $(STAMP) assets   ## figures, as ratios; asserts nothing
	$(BIN)/python -m pytest tests/bench -m bench -s

clean:
	rm -rf $(VENV) runs build dist
