# make demo        train the embedded model with RL, on this machine, and leave the run in runs/
# make test        the fast tests
# make test-slow   the rest of them (no GPU needed)
# make dev         an editable install with the tools
#
# Each installs what it needs into .venv, or into the environment of PYTHON=/path/to/python.

SEED ?= 0
MARKS ?= not slow and not gpu and not ci
PYTHON ?=
TESTS ?= tests

ifeq ($(strip $(PYTHON)),)
find_python = .ci/python .venv
else
find_python = printf '%s' '$(PYTHON)'
endif

# Tests and demo meet the installed package, not the checkout they stand in, and so do the processes they start.
run = PYTHONSAFEPATH=1 "$$python" -m

.PHONY: demo test test-slow dev clean

demo:
	@set -e; python=$$($(find_python)); .ci/install "$$python" demo; $(run) flowrl train shapes --set run.seed=$(SEED)

test:
	@set -e; python=$$($(find_python)); .ci/install "$$python" test; $(run) pytest $(TESTS) -m "$(MARKS)"

test-slow:
	@set -e; python=$$($(find_python)); .ci/install "$$python" test; $(run) pytest $(TESTS) -m "(slow or ci) and not gpu"

dev:
	@set -e; python=$$($(find_python)); .ci/install "$$python" dev; echo "editable install in $$python"

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache
