# `make demo`, `make docs`, `make test` and `make check` set up .venv first; nothing else needs to be installed by hand.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DOCS_STAMP := $(VENV)/.installed-docs
DEMO_ARGS ?=

TORCH_FREE := .venv-torch-free

.PHONY: demo docs test test-cluster test-torch-free check clean

demo: $(STAMP)
	$(BIN)/mimo-launch run examples/digits_vlm/non_colocated.yaml -- $(DEMO_ARGS)

test: $(STAMP)
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not ranks and not slow and not peer and not cluster"
	$(BIN)/python -m pytest -m "(ranks or slow or peer) and not cluster"

# The documentation as a site, in build/site.
docs: $(DOCS_STAMP)
	$(BIN)/python docs/draw_job.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "The site is in build/site. To look at it: python3 -m http.server -d build/site"

# Several hosts, and a SLURM cluster, on this machine: as root, on Debian, whose Slurm is installed where it is missing.
test-cluster: $(STAMP)
	tests/cluster/lab/install.sh
	$(BIN)/python -m pytest -m cluster

# The half that needs no torch, on another Python: make test-torch-free PYTHON=python3.13
test-torch-free:
	$(PYTHON) -m venv --clear $(TORCH_FREE)
	$(TORCH_FREE)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		omegaconf tabulate pytest pytest-timeout hypothesis jsonschema
	$(TORCH_FREE)/bin/pip install --quiet --disable-pip-version-check --no-deps --editable .
	$(TORCH_FREE)/bin/python -m pytest -m "not ranks and not slow and not peer and not cluster"

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python docs/check_commands.py
	$(BIN)/python docs/draw_job.py --check

# constraints.txt pins what is installed; torch comes first, so that no other package picks a build for it.
$(STAMP): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[examples,megatron,kubernetes,dev]"
	touch $(STAMP)

$(DOCS_STAMP): $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[docs]"
	touch $(DOCS_STAMP)

clean:
	rm -rf $(VENV) $(TORCH_FREE) build *.egg-info
