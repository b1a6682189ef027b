# Two commands: `make demo` and `make test`. Each makes .venv if it is missing.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python -m

.PHONY: demo test test-container check docs clean

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: $(VENV)/.installed     ## train the embedded demo and print where its report is
	$(RUN) runner recipe=demo

test: $(VENV)/.installed     ## everything that must hold: style, types, import directions, behaviour
	$(MAKE) check
	OMP_NUM_THREADS=1 $(RUN) pytest -q -n 2 --dist worksteal

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
