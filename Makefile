# `make demo` and `make test` set up what they need on a fresh Debian 12 machine, as root, and do their job.

PYTHON := .venv/bin/python
PYTEST := $(PYTHON) -m pytest

.PHONY: help setup demo demo-full-disk demo-shim demo-volumes demo-checkpoint test check lint bench soak proto lock clean

help:    ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

setup:   ## packages, .venv and .tools; leaves .venv/bin/holdfast and .venv/bin/holdfastd
	@sh scripts/setup.sh

demo: setup  ## SIGKILL the daemon under three containers and find them as they were
	$(PYTHON) demo/demo.py

demo-full-disk: setup  ## a restart on a full disk, next to what Debian's containerd does
	$(PYTHON) demo/demo_full_disk.py

demo-shim: setup  ## SIGKILL a shim and the daemon at once, next to what Debian's containerd does
	$(PYTHON) demo/demo_shim.py

demo-checkpoint: setup  ## a gVisor pod of two containers moved to another node, with the workspace that they share
	$(PYTHON) demo/demo_checkpoint.py

demo-volumes: setup  ## what a kubelet's delete of a volume leaves of others' shares, next to Debian's containerd
	$(PYTHON) demo/demo_volumes.py

test: setup  ## all tests but the long ones, two files at a time
	$(PYTEST) -q -n 2 --dist loadfile --no-loadscope-reorder --durations 20 tests/root tests/unit tests/e2e

lint: setup  ## ruff and mypy
	$(PYTHON) -m ruff check src tests demo bench
	$(PYTHON) -m ruff format --check src tests demo bench
	$(PYTHON) -m mypy

check: lint test  ## all that CI runs

bench: setup  ## figures against containerd, as ratios
	$(PYTHON) bench/run.py
	$(PYTHON) bench/lists.py
	$(PYTHON) bench/recovery.py
	$(PYTHON) bench/shim.py
	$(PYTHON) bench/volumes.py
	$(PYTHON) bench/checkpoint.py

soak: setup  ## the long tests
	$(PYTEST) -q --hypothesis-profile new tests/unit
	$(PYTEST) -q -m soak

proto: setup  ## generate the message modules from the .proto files
	sh scripts/gen_proto.sh

lock:    ## write requirements.txt from requirements.in (needs pip-tools)
	pip-compile --quiet --generate-hashes --allow-unsafe --no-emit-index-url --no-emit-trusted-host \
	  --no-emit-find-links --strip-extras --no-header -o requirements.txt requirements.in

clean:   ## what setup and the tests have made here
	rm -rf .venv .tools .setup-stamp .pytest_cache .mypy_cache .ruff_cache .hypothesis build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
