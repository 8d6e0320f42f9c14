# The whole project in a few words. `make demo` and `make test` need nothing but Python 3.11 and this checkout.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo models assets test test-all compose-test lint proto bench bench-peers reliability fuzz clean

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

demo: $(STAMP)   ## five nodes on a ring, both rules, against alone and pooled: the table, runs/demo/report.html
	$(BIN)/python deploy/assets/prepare.py assets
	$(BIN)/conlora testbed run deploy/demo/demo.yaml -o runs/demo --overwrite

models: $(STAMP)   ## four kinds of models on real data, against alone and pooled: the table of docs/models.md, about 45 minutes
	$(BIN)/python deploy/assets/models.py assets
	for name in glosses garments captions language; do \
	  $(BIN)/conlora testbed run deploy/models/$$name.yaml -o runs/models/$$name --overwrite || exit 1; \
	done
	$(BIN)/python deploy/models/table.py runs/models

assets: $(STAMP)
	$(BIN)/python deploy/assets/prepare.py assets

test: $(STAMP) assets   ## everything under 12 minutes on 2 cores
	$(BIN)/pytest -m "not long and not bench and not compose"

test-all: $(STAMP) assets   ## also what takes longer, such as real models
	$(BIN)/python deploy/assets/models.py assets
	$(BIN)/pytest -m "not bench and not compose"

# Not in test-all: as root it installs a Docker engine where none answers, and it builds an image.
compose-test: $(STAMP) assets   ## the image and the compose testbed on a Docker engine: one that is there, or its own
	$(BIN)/pytest tests/e2e/test_compose.py -m compose

lint: $(STAMP)   ## style, types, import contracts, generated code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python proto/generate.py --check

proto: $(STAMP)   ## regenerates node/conlora/v1
	$(BIN)/python proto/generate.py

bench: $(STAMP)   ## figures, as ratios, and tables of them in runs/bench
	$(BIN)/python deploy/assets/models.py assets
	$(BIN)/python -m pytest tests/bench -m "bench and not peers" -s

bench-peers: $(STAMP)   ## rounds of hivemind, p2pfl, Flower and NVFLARE beside ours; fetches them into .bench-envs
	$(BIN)/python -m pytest tests/bench -m peers -s

reliability: $(STAMP) assets   ## what a federation survives, in figures: tables in runs/reliability
	$(BIN)/python -m pytest tests/reliability -m "bench or long" -s

fuzz: $(STAMP)   ## a million hostile frames and more through a node's decode path; fetches atheris into .bench-envs
	$(BIN)/python -m pytest tests/reliability/test_fuzzing.py -m long -s

clean:
	rm -rf $(VENV) .bench-envs runs build dist
