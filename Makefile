# Two commands: `make demo` and `make test`. Each makes .venv if it is missing.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python -m
# More tests at a time than cores: many of them wait for other processes most of the time.
JOBS ?= $(shell expr $$(nproc 2>/dev/null || echo 2) + 3)
TESTS := OMP_NUM_THREADS=1 $(RUN) pytest -q --durations=20 -n $(JOBS) --dist worksteal

.PHONY: demo test behaviour test-slow test-container check docs clean

# Compile on all cores, which pip does not do; files that packages hold for a later Python fail to compile. What is left
# out is a third of all files and hardly ever loaded; loading compiles it.
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

test-slow: $(VENV)/.installed   ## slow tests that resemble a quicker one
	$(TESTS) -m slow

test-container: $(VENV)/.installed   ## build the training image with podman, and train in it; needs root
	tests/container/real_image.sh

check: $(VENV)/.installed
	$(RUN) ruff format --check .
	$(RUN) ruff check .
	$(RUN) mypy
	$(VENV)/bin/lint-imports

docs: $(VENV)/.installed     ## regenerate docs/configuration.md from the schema
	$(RUN) runner.schema.reference docs/configuration.md

clean:
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache
