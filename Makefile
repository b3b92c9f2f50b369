# The commands of the lab. Each one first sets up .venv, once, and again when pyproject.toml or constraints.txt change.
#   make run [PROFILE=cpu|long|gpu] [ONLY="02 04"] [ARGS="--set seed=1 --force"]   make test   make lab   make app   make bench   make refs [ONLY=...]
#   make sweep [DESIGN=params/sweep.yaml] [ARGS="--seeds 2 --dry-run"]   make chaos [ARGS="--engine ray"]

PROFILE ?= cpu
ONLY ?=
ARGS ?=
PY := .venv/bin/python
DESIGN ?= params/sweep.yaml
NOTEBOOK = $(firstword $(sort $(wildcard notebooks/*.ipynb)))

# One thread: the models are small, and two threads beside a busy neighbour can be ten times slower than one.
export OMP_NUM_THREADS ?= 1

.PHONY: run test lab app sweep bench chaos refs

run: .venv/installed
	@$(PY) -m lib run --profile $(PROFILE) $(if $(ONLY),--only $(ONLY)) $(ARGS)

# Every check runs even when an earlier one fails; pytest's summary comes last. The notebooks are compared with their saved outputs.
test: .venv/installed
	@failed=0; \
	$(PY) -m ruff check . || failed=1; \
	$(PY) -m ruff format --check . || failed=1; \
	$(PY) -m pytest --nbval --nbval-sanitize-with tests/sanitize.cfg --nbval-cell-timeout 300 tests notebooks $(ARGS) || failed=1; \
	exit $$failed

# On this machine alone, with a token; both say their address. Options: make lab ARGS="--port=9999", make app ARGS="--theme dark".
lab: .venv/installed
	@$(PY) -m jupyterlab --ServerApp.ip=127.0.0.1 $(NOTEBOOK) $(ARGS)

app: .venv/installed
	@$(PY) -m lib app $(ARGS)

sweep: .venv/installed
	@$(PY) -m lib sweep $(DESIGN) $(ARGS)

bench: .venv/installed
	@$(PY) -m lib bench $(ARGS)

# A sweep that is killed again and again, twenty times: minutes.
chaos: .venv/installed
	@$(PY) tests/chaos.py $(ARGS)

refs: .venv/installed
	@$(PY) -m lib refs $(if $(ONLY),--only $(ONLY))
	@$(if $(ONLY),,$(PY) -m lib refs --pictures)

.venv/installed: pyproject.toml constraints.txt
	@for python in python3 python3.13 python3.12 python3.11; do \
	    if $$python -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then break; fi; \
	    python=; \
	done; \
	if $(PY) -m pip --version >/dev/null 2>&1; then :; \
	elif [ -n "$$python" ]; then echo "setting up .venv with $$($$python --version): a few minutes, once"; $$python -m venv .venv; \
	else echo "Python 3.11, 3.12 or 3.13 with its venv module is needed (Debian: apt-get install python3-venv)" >&2; exit 2; fi
	@$(PY) -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
