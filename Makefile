# make run              the main job on two demonstration voices
# make run RECORDINGS=d the main job on your recordings: one sub-folder of d per voice
# make test             install and pass the tests
# make check            lint, types, and that the lock file is fresh
# make drills           the long tests: faults and fuzzing

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
RECORDINGS ?=
WORKSPACE ?= workspace
BASE ?= nano
COMPILE := uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --generate-hashes --no-header \
	--no-emit-index-url --no-emit-find-links --quiet

.PHONY: install run test drills check lint types lock lock-check clean

install: $(VENV)/.installed

$(VENV)/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 13) else "Python 3.11 or 3.12 is needed, this is %d.%d; set PYTHON=" % v)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(sed -n 's/^\(uv==[^ ;]*\).*/\1/p' requirements.lock)"
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip sync --quiet --compile-bytecode requirements.lock
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

run: install
	$(BIN)/gsv onboard $(if $(RECORDINGS),"$(RECORDINGS)",--demo) --workspace "$(WORKSPACE)" --base $(BASE)

# Two processes, whole files each: most of the long tests wait for Ray or a server to start.
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" --numprocesses 2 --dist loadfile

drills: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow

check: lint types lock-check

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

lock:
	VIRTUAL_ENV=$(VENV) $(BIN)/$(COMPILE) --output-file requirements.lock

# The lock is fresh when resolving again, with its versions preferred, changes nothing; and it names no index.
lock-check: install
	@cp requirements.lock $(VENV)/lock-check.txt
	VIRTUAL_ENV=$(VENV) $(BIN)/$(COMPILE) --output-file $(VENV)/lock-check.txt
	@cmp requirements.lock $(VENV)/lock-check.txt || (echo 'requirements.lock is stale: run make lock' && exit 1)
	@if grep -nE '://|--(index|find-links|extra-index)' requirements.lock; then echo 'requirements.lock holds an address'; exit 1; fi

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
