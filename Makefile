.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
METHODS := mixed_sft posthoc_sft npo rmu
BROWSER ?= chromium
WORKERS ?= 2
# threads of small models mostly wait for each other, so every test process has one
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist worksteal
SEED ?= 0
SHAPE ?= small
RUNS := runs/table/seed$(SEED)
CROSSED := $(foreach method,$(METHODS),$(RUNS)/$(method)_crossed $(RUNS)/$(method)_crossed_unseen)
ROWS := $(addprefix $(RUNS)/,$(METHODS) $(METHODS:%=%_crossed))

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

.PHONY: install demo test test-fast table table-crossed paper pictures lint format help bench-eval bench-train gpu-check docs soak fuzz

install: $(INSTALLED)  ## create .venv with the pinned dependencies

demo: $(INSTALLED)  ## train RMU on the mini setting, attack it, print the table (about a minute)
	$(BIN)/mirage fit --config rmu.yaml

test: $(INSTALLED)  ## run every test (WORKERS=2 processes, one thread each)
	$(PYTEST)

test-fast: $(INSTALLED)  ## the quick tests; says what it leaves out
	$(PYTEST) -m "not slow and not real"
	@echo "Left out (see 'deselected' above): whole fits, killed and two-process runs, and the real kit. make test runs them."

table: $(INSTALLED)  ## the starting model and all four methods on the mini setting, as the paper's Table 1 (SEED=0)
	for method in $(METHODS); do \
	  $(BIN)/mirage fit --config $$method.yaml --seed_everything $(SEED) --trainer.default_root_dir $(RUNS)/$$method || exit 1; \
	done
	$(BIN)/mirage report $(addprefix $(RUNS)/,$(METHODS)) --out $(RUNS)/report

table-crossed: $(INSTALLED)  ## the same on crossed forms, with the attack's words in training and without (SEED=0)
	for method in $(METHODS); do \
	  $(BIN)/mirage fit --config $${method}_crossed.yaml --seed_everything $(SEED) \
	    --trainer.default_root_dir $(RUNS)/$${method}_crossed || exit 1; \
	  $(BIN)/mirage fit --config $${method}_crossed.yaml --seed_everything $(SEED) --data.crossing.exclude attack \
	    --trainer.default_root_dir $(RUNS)/$${method}_crossed_unseen || exit 1; \
	done
	$(BIN)/mirage report $(CROSSED) --out $(RUNS)/report_crossed

paper: $(INSTALLED)  ## the paper's table and figures at 7B (MODELS=models DATA=data ARGS=--dry-run; docs/paper.md)
	$(BIN)/mirage paper --models $(or $(MODELS),models) --data $(or $(DATA),data) $(ARGS)

pictures: $(INSTALLED)  ## the README's pictures from the runs of `make table table-crossed` (BROWSER=chromium takes the page's)
	mkdir -p docs/images
	$(BIN)/mirage report $(ROWS) --out $(RUNS)/report
	cp $(RUNS)/report/curves.png docs/images/curves.png
	$(BROWSER) --headless --no-sandbox --hide-scrollbars --window-size=1200,1500 \
	  --screenshot=$(CURDIR)/docs/images/report.png file://$(CURDIR)/$(RUNS)/report/report.html

docs: .venv-docs  ## the documentation as a site in site/, every link checked
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict --quiet

.venv-docs:  # of its own: it needs neither torch nor the package
	$(PYTHON) -m venv $@
	$@/bin/pip install --quiet mkdocs-material==9.8.2 'mkdocstrings[python]==1.0.8'

soak: $(INSTALLED)  ## strike fits and validations N=200 times (signals, full disk), resume and compare; at most MINUTES=60
	PYTHONPATH=$(CURDIR)/tests $(BIN)/python tests/soak.py --kills $(or $(N),200) --minutes $(or $(MINUTES),60) --least 10

fuzz: $(INSTALLED)  ## N=10000 damaged and hostile files through every reader
	MIRAGE_FUZZ=$(or $(N),10000) $(PYTEST) tests/test_fuzz.py

lint: $(INSTALLED)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)  ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench-eval: $(INSTALLED)  ## answers/s of batched, prefix-shared generation against one at a time (KIT=folder of the real kit)
	$(BIN)/python benchmarks/evaluation_speed.py --model $(KIT)/smol-llava --root $(KIT)/vlguard

bench-train: $(INSTALLED)  ## a training step against the published one: seconds, operations, peak memory (SHAPE=wide for memory, 7b for a GPU)
	$(BIN)/python benchmarks/training_speed.py --shape $(SHAPE)

gpu-check: $(INSTALLED)  ## LLaVA-1.5-7B's shape on this GPU: tokens/s, MFU, peak memory, answers/s
	$(BIN)/python benchmarks/gpu_check.py --out runs/gpu_check.json

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | awk -F '\t' '{printf "  make %-14s %s\n", $$1, $$2}'
