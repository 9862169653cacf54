# Every way to build and check Isthmus. `make` alone lists the targets.

# The first Python that is new enough; `make PYTHON=/path/to/python ...` overrides it.
PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13 python; do \
    $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
VENV ?= .venv
PYTEST_ARGS ?=
# Two test files at a time: much of the suite waits for clusters, servers and processes. The tests of a file share what they start.
PYTEST := -m pytest -n 2 --dist loadfile

PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed

# No usage reports, no warning about forked tokenizers, figures without a display.
export RAY_USAGE_STATS_ENABLED := 0
export TOKENIZERS_PARALLELISM := false
export MPLBACKEND := Agg
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help venv demo hera hera-profiling test check static check-format check-lint check-types check-imports format clean clean-venv

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(STAMP)  ## create .venv with everything installed (again when pyproject.toml or constraints.txt change)

demo: $(STAMP)  ## run the quickstart scenario; prints where the report is
	@$(PY) run_sim.py run scenarios/quickstart.yaml

HERA := hera hera_ablation hera_thresholds hera_budgets hera_profiling hera_baselines hera_partial hera_tiers branching

hera: $(STAMP)  ## every experiment of docs/hera.md, under an hour on 2 cores; goes on where it stopped
	@$(PY) run_sim.py profile scenarios/hera.yaml
	@$(PY) run_sim.py estimators scenarios/hera.yaml --judge --out pair
	@for name in $(HERA); do $(PY) run_sim.py run scenarios/$$name.yaml || exit; done
	@test -z "$$ISTHMUS_DATA" || $(PY) run_sim.py run scenarios/hera_networks.yaml

comma := ,
PROFILED := 50 100
PROFILED_POLICY := {policy: hera, components: urc+sse, tau_request: 0.8, kappa_step: 0, kappa: [0.9, 0.95, 0.99], \
    estimators: [$(foreach n,$(PROFILED),results/estimators/$(n)$(comma)) pair]}

hera-profiling: $(STAMP)  ## HERA with estimators trained on few requests: half an hour on 2 cores
	@for n in $(PROFILED); do test -d results/estimators/$$n || \
	    $(PY) run_sim.py estimators scenarios/hera.yaml --requests $$n --out results/estimators/$$n || exit; done
	@$(PY) run_sim.py run scenarios/hera_profiling.yaml --set "policies.2=$(PROFILED_POLICY)"

test: $(STAMP)  ## the whole test suite, slow tests included; PYTEST_ARGS="-k name" narrows it
	@$(PY) $(PYTEST) $(PYTEST_ARGS)

check: static  ## what to run before every commit: static checks, then the fast tests
	@$(PY) $(PYTEST) -m "not slow" $(PYTEST_ARGS)

# Separate targets, so that `make --keep-going static` shows the findings of all four.
static: check-format check-lint check-types check-imports  ## formatting, lint, types and import contracts, without tests

check-format: $(STAMP)
	$(VENV)/bin/ruff format --check .

check-lint: $(STAMP)
	$(VENV)/bin/ruff check .

check-types: $(STAMP)
	$(VENV)/bin/mypy

check-imports: $(STAMP)
	$(VENV)/bin/lint-imports --no-logo

format: $(STAMP)  ## rewrite files in the project's format and apply safe lint fixes
	@$(VENV)/bin/ruff format .
	@$(VENV)/bin/ruff check --fix .

clean:  ## remove caches and build leftovers; results/ and .venv stay
	@rm -rf build *.egg-info .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis
	@find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

clean-venv:  ## remove .venv
	@rm -rf "$(VENV)"

# The stamp is written last, so an interrupted installation is taken up again.
$(STAMP): pyproject.toml constraints.txt
	@if [ -z "$(PYTHON)" ] || ! "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    echo "Isthmus needs Python 3.11 or later; found: $$("$(or $(PYTHON),python3)" --version 2>&1 || true)." >&2; \
	    echo "Install python3.11 or name one: make PYTHON=/path/to/python3.11 venv" >&2; exit 1; fi
	@[ -x "$(PY)" ] || { echo "Creating $(VENV) with $(PYTHON)"; "$(PYTHON)" -m venv "$(VENV)"; }
	@"$(PY)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "$(VENV) holds an older Python than 3.11: run 'make clean-venv', then this again." >&2; exit 1; }
	@echo "Installing into $(VENV): about 2.4 GB with a CPU build of torch, more with CUDA; some minutes"
	@"$(PY)" -m pip install -qq --progress-bar off -c constraints.txt '.[dev]'
	@rm -rf build isthmus.egg-info
	@touch "$@"
	@echo "Installed"
