# `make demo`, `make docs`, `make test` and `make check` set up .venv first; nothing else needs to be installed by hand.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DOCS_STAMP := $(VENV)/.installed-docs
DEMO_ARGS ?=

TORCH_FREE := .venv-torch-free
TORCH ?= 2.13.0
TORCH_VENV ?= .venv-torch-$(TORCH)
MEGATRON_VENV := .venv-megatron
# What pytest gets beside the markers, such as the tests to run.
PYTEST_ARGS ?=

# Both halves of the tests, whatever the first one ends with: what runs in parallel, then what starts several processes, of
# which two files run at the same time: a test of ranks waits for much of its time.
# With a selection, one of them may be left without a test: pytest's exit code 5.
# Compiled first: under PYTHONDONTWRITEBYTECODE each of some thousand processes would compile what it imports.
define run_tests
	@$(firstword $(1)) -m compileall -q launcher mimo_role examples tests
	@fast=0; ranks=0; \
	$(1) -n auto --dist worksteal -m "not ranks and not slow and not peer and not cluster" $(PYTEST_ARGS) || fast=$$?; \
	$(1) -n 2 --dist loadfile -m "$(2)" $(PYTEST_ARGS) || ranks=$$?; \
	echo "exit code of the tests in parallel: $$fast; of those with several processes: $$ranks"; \
	case "$$fast $$ranks" in "0 0"$(if $(PYTEST_ARGS),|"0 5"|"5 0")) ;; *) exit 1;; esac
endef

.PHONY: demo docs test test-browser test-cluster test-megatron test-torch test-torch-free check clean

demo: $(STAMP)
	$(BIN)/mimo-launch run examples/digits_vlm/non_colocated.yaml -- $(DEMO_ARGS)

test: $(STAMP)
	$(call run_tests,$(BIN)/python -m pytest,(ranks or slow or peer) and not cluster)

# The documentation as a site, in build/site.
docs: $(DOCS_STAMP)
	$(BIN)/python docs/draw_job.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "The site is in build/site. To look at it: python3 -m http.server -d build/site"

# Several hosts, and a SLURM cluster, on this machine: as root, on Debian, whose Slurm is installed where it is missing.
test-cluster: $(STAMP)
	tests/cluster/lab/install.sh
	$(BIN)/python -m pytest -m cluster

# The page of a run in Chromium: as root, on Debian, whose Chromium is installed where there is none.
test-browser: $(STAMP)
	tests/launcher/run_report/install_chromium.sh
	$(BIN)/python -m pytest -m browser

# Another torch, on another Python: make test-torch TORCH=2.11.0 PYTHON=python3.12 PYTEST_ARGS=tests/mimo_role
# Without the comparisons with Megatron-Core, and without clusters.
test-torch: $(TORCH_VENV)/.installed
	$(call run_tests,$(TORCH_VENV)/bin/python -m pytest,(ranks or slow) and not peer and not cluster)

# With the Megatron-Core of another Python, 0.19 from 3.12 on: make test-megatron PYTHON=python3.12
test-megatron: $(MEGATRON_VENV)/.installed
	$(MEGATRON_VENV)/bin/python -m pytest $(PYTEST_ARGS) tests/mimo_role/megatron tests/examples/test_megatron_mimo.py
	$(MEGATRON_VENV)/bin/python -m pytest $(PYTEST_ARGS) -m peer tests/mimo_role/groups tests/mimo_role/training

# The half that needs no torch, on another Python: make test-torch-free PYTHON=python3.13
test-torch-free:
	$(PYTHON) -m venv --clear $(TORCH_FREE)
	$(TORCH_FREE)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		omegaconf rich tabulate pytest pytest-timeout hypothesis jsonschema
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
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[examples,megatron,submit,kubernetes,dev]"
	touch $(STAMP)

# Each torch has a requirement of its own for setuptools.
$(TORCH_VENV)/.installed $(MEGATRON_VENV)/.installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(@D)
	grep -Ev '^(torch|setuptools)==' constraints.txt > $(@D)/constraints.txt
	$(@D)/bin/pip install --quiet --disable-pip-version-check --constraint $(@D)/constraints.txt \
		torch==$(TORCH) --editable ".[examples,megatron,submit,kubernetes,dev]"
	touch $@

$(DOCS_STAMP): $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[docs]"
	touch $(DOCS_STAMP)

# tests/gpu with the torch of PYTHON, on a machine with one GPU (docs/gpu.md). It needs no package index: gpu-wheels collects
# the other packages beforehand, on any machine, for the Python of the one with the GPU.
GPU_VENV := .venv-gpu
GPU_WHEELS := build/gpu-wheels
GPU_PYTHON ?= 3.12
GPU_NEEDS := omegaconf PyYAML tabulate pytest pytest-timeout hypothesis

.PHONY: gpu-wheels test-gpu

gpu-wheels:
	rm -rf $(GPU_WHEELS)
	$(PYTHON) -m pip download --quiet --disable-pip-version-check --dest $(GPU_WHEELS) --constraint constraints.txt \
		--only-binary :all: --implementation cp --python-version $(GPU_PYTHON) \
		--platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 $(GPU_NEEDS)

# PYTHON may belong to an environment itself, whose packages --system-site-packages would not show.
test-gpu:
	$(PYTHON) -m venv --clear --without-pip $(GPU_VENV)
	$(PYTHON) -c "import site; print(*site.getsitepackages(), site.getusersitepackages(), sep='\n')" >$(GPU_VENV)/beside.pth
	mv $(GPU_VENV)/beside.pth $(GPU_VENV)/lib/python3*/site-packages
	$(PYTHON) -m pip --python $(GPU_VENV)/bin/python install --quiet --disable-pip-version-check \
		--no-index --find-links $(GPU_WHEELS) $(GPU_NEEDS)
	-nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
	$(GPU_VENV)/bin/python -m pytest tests/gpu -v -rA -W default --junitxml=build/gpu-tests.xml

clean:
	rm -rf $(VENV) $(TORCH_FREE) $(GPU_VENV) .venv-torch-* build *.egg-info
