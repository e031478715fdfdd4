# make demo    set everything up, run ADP on generated and real images, print a table and the figures' paths
# make test    unit tests, doctests and the notebooks
# make tables  the full mini grid behind ADP's committed tables (up to 3 hours, resumable); METHOD=anomalysd or METHOD=tgvig: another paper's
# make lab     JupyterLab on the notebooks
# make clean   remove the virtual environment, caches and generated images (runs stay; make clean-runs removes them)

PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed
PY := $(VENV)/bin/python
JOBS ?=
METHOD ?= adp

# Large tensors must not be mapped and unmapped at every step; nothing is ever fetched from a hub.
export MALLOC_MMAP_MAX_ := 0
export MALLOC_TRIM_THRESHOLD_ := 200000000000
export HF_HUB_OFFLINE := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test tables lab lint clean clean-runs
.DEFAULT_GOAL := demo

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
		{ echo "Python 3.11 to 3.13 is needed, found $$($(PYTHON) --version). Try: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 2; }
	@echo "Installing into $(VENV) (once; 3 to 6 minutes and 7 GB on disk)"
	@test ! -x $(PY) || test "$$($(PY) -c 'import sys; print(sys.version_info[:2])')" = "$$($(PYTHON) -c 'import sys; print(sys.version_info[:2])')" || rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --progress-bar off -c constraints.txt -e '.[elpv,test]'
	@touch $@

demo: $(STAMP)
	@$(PY) -m fsad_lib demo $(if $(JOBS),--jobs $(JOBS))

tables: $(STAMP)
	@$(PY) -m fsad_lib tables $(METHOD) $(if $(JOBS),--jobs $(JOBS))

test: export OMP_NUM_THREADS := 1
test: $(STAMP)
	$(PY) -m pytest -q -n 2 --dist loadfile --durations 10 tests fsad_lib
	$(if $(wildcard notebooks/*.ipynb),$(PY) -m pytest -q -n 2 --dist loadfile --durations 10 --nbval-lax \
		--nbval-current-env --nbval-cell-timeout 300 -p no:doctest -o addopts= notebooks)

lab: $(STAMP)
	$(PY) -m jupyter lab --notebook-dir notebooks

lint: $(STAMP)
	$(PY) -m pip install --quiet -c constraints.txt -e '.[dev]'
	$(PY) -m ruff check .

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache data/datasets/minifab data/datasets/minifab_dev
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

clean-runs:
	rm -rf data/runs
