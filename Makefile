# Two commands: `make demo` and `make test`. Each makes .venv if it is missing.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python -m
# More at a time than there are cores: many tests wait for other processes most of the time.
JOBS ?= $(shell expr $$(nproc 2>/dev/null || echo 2) + 3)
TESTS := OMP_NUM_THREADS=1 $(RUN) pytest -q --durations=20 -n $(JOBS) --dist worksteal

.PHONY: demo test behaviour test-slow test-container check docs clean

# Compiled on all cores, as pip does not; what packages hold for a later Python does not compile. What is left out is
# a third of all that is there and hardly ever loaded, which compiles it.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[dev]'
	$(RUN) compileall -qq -j 0 -x '/(tests|transformers/models|diffusers/pipelines)/' $(VENV)/lib runner || true
	touch $@

demo: $(VENV)/.installed     ## train the embedded demo and print where its report is
	$(RUN) runner recipe=demo

test: $(VENV)/.installed     ## everything that must hold: style, types, import directions, behaviour
	$(MAKE) --jobs=2 check behaviour

behaviour: $(VENV)/.installed
	$(TESTS) -m 'not slow'

test-slow: $(VENV)/.installed   ## what takes long and is much like something quicker
	$(TESTS) -m slow

test-container: $(VENV)/.installed   ## build the training image with podman, and train in it; needs root
	tests/container/real_image.sh

check: $(VENV)/.installed
	$(RUN) ruff format --check .
	$(RUN) ruff check .
	$(RUN) mypy
	$(VENV)/bin/lint-imports

docs: $(VENV)/.installed     ## write docs/configuration.md anew from the schema
	$(RUN) runner.schema.reference docs/configuration.md

clean:
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache
